"""Quantised checkpoints, dequantised as they are read: fp8 and fp4 with scales (a tensor's, a channel's or a block's), and MXFP4.

Transformers derives a block's size from the number of scales, which is wrong where the last block of a row or column is cut: DeepSeek-V3
has 576 rows in 5 blocks of 128. Here the configuration says the size (`weight_block_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from grace_moe.errors import ModelError
from grace_moe.runtime.model.checkpoint import Tensors

_METHODS = ("fp8", "mxfp4")
_PACKED = ("F8_E4M3", "F8_E5M2", "I8")
"""What safetensors calls the types of weights that have scales; I8 holds two values of four bits."""
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".qscale_act")
_MXFP4_GROUP = 32
_UNBIASED = 127
"""A scale in a byte is a power of two, its exponent with this bias."""


def dequantised(tensors: Tensors, config: Any, path: str) -> Tensors:
    """The tensors under their weights' names, in float32; the same object where nothing is quantised.

    Raises:
        ModelError: a quantisation that we can't undo, or a weight without a scale that fits it.
    """
    said = getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None)
    if said is None:
        return tensors
    quantization = said if isinstance(said, dict) else said.to_dict()
    method = quantization.get("quant_method")
    if method not in _METHODS:
        raise ModelError(
            f"{path}: config.json: quantization_config: {method!r} can't be placed; give {', '.join(_METHODS)} or plain weights"
        )
    blocks = quantization.get("weight_block_size")
    plain: Tensors = {}
    scales: set[str] = set()
    for name, view in tensors.items():
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in tensors:
            weight = name.removesuffix("_blocks")
            plain[weight] = _Mxfp4View(view, tensors[f"{weight}_scales"])
            scales.add(f"{weight}_scales")
        elif view.get_dtype() in _PACKED:
            scale = _scale_of(name, tensors, path)
            plain[name] = _ScaledView(view, tensors[scale], f"{path}: weights: {name}", blocks)
            scales.add(scale)
        elif not name.endswith(_OF_ACTIVATIONS):
            plain[name] = view
    return {name: view for name, view in plain.items() if name not in scales}


def _scale_of(name: str, tensors: Tensors, path: str) -> str:
    stem = name.removesuffix(".weight")
    for scale in (f"{name}_scale_inv", f"{name}_scale", f"{stem}.scale", f"{stem}.qscale_weight"):
        if scale in tensors:
            return scale
    raise ModelError(f"{path}: weights: {name} is quantised, and its scale {name}_scale_inv is missing; download or copy them again")


class _ScaledView:
    """A weight `[..., rows, columns]` times its scales."""

    def __init__(self, weight: Any, scale: Any, called: str, blocks: Sequence[int] | None) -> None:
        self.weight, self.scale = weight, scale
        self.is_fp4 = weight.get_dtype() == "I8"
        *rest, columns = weight.get_shape()
        self.shape = [*rest, columns * 2 if self.is_fp4 else columns]
        self.block = _block_of(self.shape, scale.get_shape(), blocks, called)

    def get_shape(self) -> list[int]:
        return self.shape

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> torch.Tensor:
        scale = partial(scaled, block=self.block, is_fp4=self.is_fp4)
        first, *rest = index if isinstance(index, tuple) else (index,)
        if len(self.shape) == 3 and isinstance(first, slice):  # some experts of all
            return scale(self.weight[first], self.scale[first])[(slice(None), *rest)]
        return scale(self.weight[...], self.scale[...])[index]


class _Mxfp4View:
    """gpt-oss's experts: `[experts, out, groups, 16]` bytes of two values each, and a scale a group, as `[experts, in, out]`."""

    def __init__(self, blocks: Any, scales: Any) -> None:
        self.blocks, self.scales = blocks, scales
        experts, out, groups, _ = blocks.get_shape()
        self.shape = [experts, groups * _MXFP4_GROUP, out]

    def get_shape(self) -> list[int]:
        return self.shape

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> torch.Tensor:
        first, *rest = index if isinstance(index, tuple) else (index,)
        some = first if isinstance(first, slice) else slice(None)
        whole: torch.Tensor = convert_moe_packed_tensors(self.blocks[some], self.scales[some], dtype=torch.float32)
        return whole[(slice(None), *rest)] if isinstance(first, slice) else whole[index]


def _block_of(weight: Sequence[int], scale: Sequence[int], blocks: Sequence[int] | None, called: str) -> tuple[int, int]:
    """Rows and columns that one scale is of. Raises ModelError where the scales fit neither the configured blocks nor equal ones."""
    if len(scale) < 2:
        scale = (1, 1) if not scale or list(scale) == [1] else (*scale, 1)
    sizes = list(zip(weight[-2:], scale[-2:], strict=True))
    if blocks is not None and all(-(-size // block) == count for (size, count), block in zip(sizes, blocks, strict=True)):
        return blocks[0], blocks[1]
    if any(count == 0 or size % count for size, count in sizes):
        raise ModelError(f"{called}: {list(scale)} scales for {list(weight)} fit no block size; config.json: weight_block_size is {blocks}")
    (rows, by_row), (columns, by_column) = sizes
    return rows // by_row, columns // by_column


def scaled(weight: torch.Tensor, scale: torch.Tensor, *, block: tuple[int, int], is_fp4: bool = False) -> torch.Tensor:
    """float32 `[..., rows, columns]`: each block of a weight times its scale; the last of a row or column may be cut.

    Args:
        scale: `[..., blocks of rows, blocks of columns]`, or one of all, or one a row; bytes are exponents.
    """
    wide = _unpacked(weight) if is_fp4 else weight.to(torch.float32)
    factor = (scale.to(torch.float32) - _UNBIASED).exp2() if scale.dtype == torch.uint8 else scale.to(torch.float32)
    if factor.numel() == 1:
        return wide * factor.reshape(())
    if factor.ndim == 1:
        return wide * factor[:, None]
    rows, columns = wide.shape[-2:]
    by_row = factor.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    return wide * by_row.repeat_interleave(block[1], dim=-1)[..., :columns]


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """Two values of four bits a byte, the low ones first."""
    values, both = torch.tensor(_FP4_VALUES), packed.contiguous().view(torch.uint8).to(torch.int64)
    return torch.stack([values[both & 15], values[both >> 4]], dim=-1).flatten(-2)
