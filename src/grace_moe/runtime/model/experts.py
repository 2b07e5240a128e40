"""Expert compute on CPU: one slot after the other, each on the rows that name it.

Transformers' ways first copy a row per (row, expert) pair, and their float32 products go through a BLAS that is slow for the few rows that
an expert gets in decode. Here rows are gathered a slot at a time and products go to oneDNN where that is faster (benchmarks/experts.py).
Weights are read as every architecture of Transformers lays them out: by its flags, through its own gate.

Summation order: for each row, k ascending, in float32 at least. Shape letters as in `dispatch.dispatcher`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from grace_moe.runtime.dispatch.dispatcher import Received
from grace_moe.runtime.dispatch.rows import add_rows

_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def computes_by_slot(experts: torch.nn.Module, received: Received) -> bool:
    """Whether `compute_by_slot` can serve the module: on CPU, without gradients, weights plain and of the rows' own dtype.

    What else there is (CUDA, quantised experts, training) stays with Transformers' own functions.
    """
    hidden = received.hidden_RH
    if hidden.device.type != "cpu" or torch.is_grad_enabled() or not hasattr(experts, "has_gate"):
        return False
    names = ["gate_up_proj" if experts.has_gate else "up_proj", "down_proj"]
    weights = [getattr(experts, name, None) for name in names + [f"{name}_bias" for name in names if experts.has_bias]]
    return all(isinstance(w, torch.Tensor) and w.dtype == hidden.dtype and w.device == hidden.device for w in weights)


def compute_by_slot(experts: torch.nn.Module, received: Received) -> torch.Tensor:
    """`[R, H]` weighted sums of this rank's experts over the slots that each row names.

    Args:
        experts: a module made by Transformers' `use_experts_implementation`, with this rank's experts in slot order.
    """
    hidden_RH, slots_RK = received.hidden_RH, received.slots_RK
    row_P, choice_P = (slots_RK >= 0).nonzero(as_tuple=True)
    slot_P, weight_P = slots_RK[row_P, choice_P], received.weights_RK[row_P, choice_P]
    order = torch.argsort(slot_P, stable=True)
    rows, weights = row_P[order], weight_P[order, None]
    wide = torch.promote_types(hidden_RH.dtype, torch.float32)
    weighted = torch.empty((len(row_P), hidden_RH.shape[1]), dtype=wide, device=hidden_RH.device)
    end = 0
    for slot, count in enumerate(torch.bincount(slot_P).tolist()):
        if count:
            start, end = end, end + count
            outputs = _expert(experts, slot, hidden_RH.index_select(0, rows[start:end]))
            weighted.index_copy_(0, order[start:end], (outputs * weights[start:end]).to(wide))
    return add_rows(weighted, row_P, len(hidden_RH)).to(hidden_RH.dtype)


def _expert(experts: Any, slot: int, hidden_PH: torch.Tensor) -> torch.Tensor:
    """One expert's unweighted output."""
    if experts.has_gate:
        inner = experts._apply_gate(_linear(experts, "gate_up_proj", slot, hidden_PH))
    else:
        inner = experts.act_fn(_linear(experts, "up_proj", slot, hidden_PH))
    outputs = _linear(experts, "down_proj", slot, inner)
    return experts.post_expert_norm(outputs) if experts.has_post_expert_norm else outputs


def _linear(experts: Any, name: str, slot: int, rows: torch.Tensor) -> torch.Tensor:
    """Rows through one expert's weight, `[out, in]` (or `[in, out]` where the architecture stores it transposed)."""
    weight = getattr(experts, name)[slot]
    weight = weight.T if experts.is_transposed else weight
    bias = getattr(experts, f"{name}_bias")[slot] if experts.has_bias else None
    # A single row through a transposed weight: oneDNN would first copy all of the weight.
    by_onednn = rows.device.type == "cpu" and rows.dtype == torch.float32 and not (experts.is_transposed and len(rows) == 1)
    if _ONEDNN_LINEAR is None or not by_onednn:
        return functional.linear(rows, weight, bias)
    product: torch.Tensor = _ONEDNN_LINEAR(rows.contiguous(), weight, bias, "none", [], "")
    return product
