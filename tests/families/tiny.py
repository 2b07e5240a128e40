"""A tiny random checkpoint of any family that Transformers has."""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.families.sizes import CHANGES, EXPERTS, NOT_OURS, shrunk

CLASSES = {
    "deepseek_ocr2": "DeepseekOcr2ForConditionalGeneration",
    "diffusion_gemma": "DiffusionGemmaForBlockDiffusion",
    "dots3_note": "Dots3NoteForConditionalGeneration",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeForConditionalGeneration",
    "aria": "AriaForConditionalGeneration",
    "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    "glm5_next": "Glm5NextForConditionalGeneration",
    "inkling": "InklingForConditionalGeneration",
    "inkling2": "Inkling2ForConditionalGeneration",
    "minimax_m3_vl": "MiniMaxM3SparseForConditionalGeneration",
    "mistral4": "Mistral4ForCausalLM",
    "mistral_large4": "MistralLarge4ForConditionalGeneration",
    "muse_spark": "MuseSparkForConditionalGeneration",
    "nllb_moe": "NllbMoeForConditionalGeneration",
    "openai_privacy_filter": "OpenAIPrivacyFilterForTokenClassification",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "step3p7": "Step3p7ForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
    "unlimited_ocr": "UnlimitedOcrForConditionalGeneration",
}
"""Where the causal class is not the one to build."""
MODEL_TYPES = {"inkling": "inkling_mm_model", "nllb_moe": "nllb-moe"}
_BIASES = r"e_score_correction_bias|expert_bias|router\.bias|gate\.bias|moe_statics"


def build(family: str, folder: Path, **changes: Any) -> Path:
    """Write the family's checkpoint into `folder`, as `save_pretrained` lays it out.

    Args:
        changes: of the configuration, beside those that the family needs.
    """
    torch.manual_seed(0)
    config = config_of(family, changes)
    name = CLASSES.get(family)
    model = getattr(transformers, name)(config) if name else AutoModelForCausalLM.from_config(config)
    spread(model.float())
    model.save_pretrained(folder)
    return folder


def config_of(family: str, changes: dict[str, Any]) -> Any:
    """The family's configuration with tiny sizes."""
    kind = CONFIG_MAPPING[MODEL_TYPES.get(family, family)]
    fields = merged(shrunk(kind().to_dict()), merged(CHANGES.get(family, {}), changes))
    return kind(**{name: value for name, value in fields.items() if name not in NOT_OURS})


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, the second over the first, inside of tables too."""
    both = dict(one)
    for name, value in other.items():
        both[name] = merged(both[name], value) if isinstance(value, dict) and isinstance(both.get(name), dict) else value
    return both


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Random values where a fresh model has all zeros or ones: routers must discriminate, correction biases too."""
    generator = torch.Generator().manual_seed(1)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("tid2eid"):
            value.copy_(torch.stack([torch.randperm(EXPERTS, generator=generator)[: value.shape[1]] for _ in range(len(value))]))
        elif not value.is_floating_point() or not value.numel():
            continue
        elif re.search(_BIASES, name):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif isinstance(value, torch.nn.Parameter) and value.ndim >= 2 and (value.std() == 0 or not torch.isfinite(value).all()):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
