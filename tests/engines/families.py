"""The MoE families of the installed Transformers, built without weights: which of their layers have experts?"""

import importlib
import re
import warnings
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name

MODELS = Path(transformers.__file__).parent / "models"
NO_TEXT = re.compile(r"(vision|audio|encoder|sam|vitpose|talker|code_predictor)")
NEEDS = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 6},
    "diffusion_gemma_text": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 16},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2, "head_dim": 16, "hidden_size": 64, "num_attention_heads": 4},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] + ["sparse"] * 11, "num_experts_per_tok": 2, "num_hidden_layers": 12},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv"], "num_hidden_layers": 6},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "num_hidden_layers": 3,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 16,
    },
}
"""What some families' defaults lack."""


@cache
def moe_types():
    """Model types of text models whose module has experts."""
    found = []
    for kind in sorted(CONFIG_MAPPING.keys()):
        folder = model_type_to_module_name(kind)
        path = MODELS / folder / f"modeling_{folder}.py"
        if path.exists() and not NO_TEXT.search(kind) and re.search(r"class \w*Experts\b", path.read_text()):
            found.append(kind)
    return found


def config_of(kind, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CONFIG_MAPPING[kind](**(NEEDS.get(kind, {}) | fields))


def layers_with_experts(config):
    """Numbers of the decoder layers in whose modules there are experts; None where Transformers can't build the model alone."""
    folder = model_type_to_module_name(config.model_type)
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    for name, cls in vars(module).items():
        if not (name.endswith("Model") and isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
            continue
        if cls.config_class is not type(config):
            continue
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = cls(config)
        except Exception:  # a family whose defaults don't build
            continue
        paths = [path for path, part in model.named_modules() if path.endswith("experts") or type(part).__name__.endswith("Experts")]
        found = {int(number) for path in paths if "vision" not in path for number in re.findall(r"(?:layers|blocks)\.(\d+)\.", path)[:1]}
        if found:
            return tuple(sorted(found))
    return None
