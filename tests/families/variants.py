"""Checkpoints as they are published: with layers that predict further tokens, in fp8 with scales of blocks, in MXFP4."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 16
_KEPT = ("embed_tokens", "lm_head", "norm", ".gate.")


def with_further_layer(folder: Path, new: Path) -> Path:
    """The last layer once more behind it, as DeepSeek-V3 and GLM-4.5 have it, and told of in the configuration."""
    shutil.copytree(folder, new)
    config, tensors = read(new)
    last = config["num_hidden_layers"] - 1
    further = {name.replace(f".{last}.", f".{last + 1}.", 1): value.clone() for name, value in tensors.items() if f"layers.{last}." in name}
    further[f"model.layers.{last + 1}.eh_proj.weight"] = torch.ones(4, 8)
    return write(new, config | {"num_nextn_predict_layers": 1}, tensors | further)


def as_fp8(folder: Path, quantised: Path, plain: Path) -> tuple[Path, Path]:
    """The projections in fp8 with a scale a block of 16 x 16, the last of a row or column cut, as DeepSeek-V3's of 128 x 128 are; and what
    they mean, in float32."""
    config, tensors = read(folder)
    packed: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if value.ndim != 2 or any(kept in name for kept in _KEPT):
            packed[name] = meant[name] = value
            continue
        packed[name], packed[f"{name}_scale_inv"], meant[name] = _by_blocks(value)
    shutil.copytree(folder, quantised)
    shutil.copytree(folder, plain)
    said = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return write(quantised, config | {"quantization_config": said}, packed), write(plain, config, meant)


def _by_blocks(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight, meant = value.to(torch.float8_e4m3fn), torch.empty_like(value)
    scales = torch.empty([-(-size // BLOCK) for size in value.shape])
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            scales[i, j] = value[block].abs().max() / 448
            weight[block] = (value[block] / scales[i, j]).to(torch.float8_e4m3fn)
            meant[block] = weight[block].float() * scales[i, j]
    return weight, scales, meant


def as_mxfp4(folder: Path, new: Path) -> Path:
    """gpt-oss's experts as OpenAI ships them: two values a byte, a power of two for each 32."""
    shutil.copytree(folder, new)
    config, tensors = read(new)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inner, outer = tensors.pop(name).shape
        groups = (experts, outer, inner // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*groups, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 126, groups, generator=generator, dtype=torch.uint8)
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return write(new, config | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": plain}}, tensors)


def read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Configuration and tensors."""
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """Both, in place of what the folder has."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
