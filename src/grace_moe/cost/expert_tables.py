"""Tables of expert kernels: what was computed in each row, under which load, and the kernel that fits them."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from grace_moe.cost.calibration import Fit
from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.expert_loads import skewed_load, uniform_load
from grace_moe.cost.fitting import FitError, Floats, error_of, held_out
from grace_moe.cost.kernel_fit import ComputeRows, fit_kernel, predict
from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.tables import Table, groups, machine_of

_START = ExpertKernel(phase="any", launch_s=2e-5, byte_s=4e-13, flop_s=1.2e-15)
"""Where the search begins: 2.5 TB/s and 830 TFLOP/s."""
_EVEN = "uniform"
_LAW = re.compile(r"power_law_(\d+(?:\.\d+)?)(_eplb)?")


def fit_experts(table: Table) -> tuple[list[ExpertKernel], list[Fit]]:
    """A kernel of each machine, version and operation, and how well it predicts: times, and what skew costs.

    Raises:
        InputFileError: a row that can't be used.
    """
    every = _rows(table)
    kernels, fits = [], []
    names = ("system", "device", "version", "op_name", "moe_dtype", "moe_kernel")
    for (system, device, version, operation, dtype, implementation), rows in _merged(groups(table, *names)).items():
        machine = machine_of(system, device)
        name = " ".join(filter(None, (operation, implementation)))
        start = replace(_START, phase=_phase(operation), machine=machine, version=version, name=name, dtype=dtype)
        part = every.take(rows)
        kernel = fit_kernel(part, start)
        kernels.append(kernel)
        found = predict(kernel, part)
        what = ", ".join(filter(None, (name or "experts", dtype, f"{machine} {version}".strip())))
        fits.append(_fit(what, table, rows, part, found, start))
        if (ratio := _ratio_error(table, rows, part.seconds, found)) is not None:
            fits.append(Fit(what=f"{what}: skewed over even", backend="experts", error=ratio))
    return kernels, fits


def _merged(found: dict[tuple[str, ...], npt.NDArray[np.int64]]) -> dict[tuple[str, ...], npt.NDArray[np.int64]]:
    """An operation and the same with `_eplb` are one kernel under other loads."""
    merged: dict[tuple[str, ...], list[npt.NDArray[np.int64]]] = {}
    for key, rows in found.items():
        merged.setdefault((*key[:3], key[3].removesuffix("_eplb"), *key[4:]), []).append(rows)
    return {key: np.sort(np.concatenate(parts)) for key, parts in merged.items()}


def _phase(operation: str) -> str:
    if "generation" in operation or "decode" in operation:
        return "decode"
    return "prefill" if "context" in operation or "prefill" in operation else "any"


def _fit(what: str, table: Table, rows: npt.NDArray[np.int64], part: ComputeRows, found: Floats, start: ExpertKernel) -> Fit:
    def predicted(fitted: npt.NDArray[np.bool_]) -> Floats:
        return predict(fit_kernel(part.take(np.flatnonzero(fitted)), start), part)

    loads = table.text("distribution")[rows]
    regimes: dict[str, FitError] = {}
    for load in sorted(set(map(str, loads))):
        here = loads == load
        regimes[load] = error_of(found[here], part.seconds[here])
    return Fit(
        what=what,
        backend="experts",
        error=error_of(found, part.seconds),
        held_out=held_out(predicted, part.seconds),
        regimes=regimes,
    )


def _ratio_error(table: Table, rows: npt.NDArray[np.int64], seconds: Floats, found: Floats) -> FitError | None:
    """Of the time under a skewed load over the time of the same under an even one: uniform, or what EPLB makes of the skewed one."""
    names = ("num_tokens", "moe_ep_size", "num_experts", "hidden_size", "inter_size", "topk")
    keys = list(zip(*(table.text(name)[rows] for name in names), strict=True))
    loads, slots = table.text("distribution")[rows], table.text("num_slots", "")[rows]
    even = {}
    for row, key in enumerate(keys):
        if loads[row] == _EVEN or (loads[row].endswith("_eplb") and slots[row] in ("", key[2])):
            even[key, loads[row].removesuffix("_eplb")] = row
    pairs = [(row, even.get((key, _EVEN), even.get((key, loads[row])))) for row, key in enumerate(keys) if _is_skewed(loads[row])]
    both = np.array([pair for pair in pairs if pair[1] is not None], dtype=np.int64).reshape(-1, 2)
    if not len(both):
        return None
    skewed, flat = both.T
    return error_of(found[skewed] / found[flat], seconds[skewed] / seconds[flat])


def _is_skewed(load: str) -> bool:
    return load != _EVEN and not load.endswith("_eplb")


def _rows(table: Table) -> ComputeRows:
    """Every row's model, load and time."""
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_ep_size")
    tokens, hidden, inter, top_k, experts, ranks = (table.counts(name).astype(int) for name in names)
    split = table.counts("moe_tp_size", 1)
    slots = table.counts("num_slots", 0.0) if "num_slots" in table.columns else experts
    dtypes, operations, distributions = table.text("moe_dtype", "fp8"), table.text("op_name"), table.text("distribution")
    load_of = cache(_load)
    models, loads = [], []
    for row, line in enumerate(table.line):
        if experts[row] % ranks[row] or slots[row] % ranks[row] or slots[row] < experts[row]:
            problem = f"{experts[row]} experts in {slots[row]:g} slots don't go on {ranks[row]} ranks"
            raise table.error(line, "moe_ep_size", problem)
        if distributions[row] != _EVEN and not _LAW.fullmatch(distributions[row]):
            raise table.error(line, "distribution", f"{str(distributions[row])!r} is neither uniform nor power_law_A nor power_law_A_eplb")
        phase = _phase(operations[row])
        load = (int(tokens[row]), int(top_k[row]), int(experts[row]), int(ranks[row]), int(slots[row]), str(distributions[row]), phase)
        loads.append(load_of(*load))
        models.append(
            ModelSizes(
                num_experts=int(experts[row]),
                top_k=int(top_k[row]),
                hidden_size=int(hidden[row]),
                expert_size=max(1, int(inter[row] / split[row])),
                weight_bytes=dtype_bytes(str(dtypes[row])),
            )
        )
    return ComputeRows(seconds=table.positive("latency") * 1e-3, models=models, loads=loads)


def _load(tokens: int, top_k: int, experts: int, ranks: int, slots: int, distribution: str, phase: str) -> Floats:
    law = _LAW.fullmatch(distribution)
    if law is None:
        return uniform_load(tokens * top_k / ranks, experts // ranks, phase)
    return skewed_load(tokens, top_k, experts, ranks, float(law[1]), slots if law[2] else None)


def dtype_bytes(name: str) -> float:
    """Bytes of a weight, with its scales.

    >>> dtype_bytes("fp8_block"), dtype_bytes("nvfp4"), dtype_bytes("bfloat16")
    (1.0, 0.5625, 2.0)
    """
    lowered = name.lower()
    if any(word in lowered for word in ("fp4", "int4", "w4", "uint4", "4bit")):
        return 0.5625
    if any(word in lowered for word in ("fp8", "float8", "int8", "w8", "8bit")):
        return 1.0
    return 4.0 if lowered in ("float32", "float") else 2.0
