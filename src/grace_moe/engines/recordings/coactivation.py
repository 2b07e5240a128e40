"""Loads with counts of pairs, but no tokens: imported as a surrogate trace that is drawn to match them.

The form is that of published expert profiles: JSON of `k`, `layers`: a list of `{"heat": [tokens that chose each expert], "pairs":
[[i, j, tokens that chose both, lift], ...]}`, where pairs that are rare may be left out, and ids may be layer * experts + expert.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints, Imported
from grace_moe.engines.recordings.layers import choose_layers, numbers_of_rows
from grace_moe.errors import TraceError, UsageError
from grace_moe.files import MAX_COUNT, MAX_EXPERTS, MAX_LAYERS, check_budget, read_json
from grace_moe.trace import RoutingTrace

if TYPE_CHECKING:
    from grace_moe.engines.recordings.surrogate import Surrogate

TOKENS = 4_096
"""Tokens of a surrogate: counts of pairs keep their size to some percent."""
_MEND = 'give "layers": a list of "heat" and "pairs" each'


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """What was counted in one layer."""

    loads: npt.NDArray[np.float64]
    """`[experts]` tokens that chose each."""
    pairs: npt.NDArray[np.int64]
    """`[pairs, 2]` experts."""
    together: npt.NDArray[np.float64]
    """`[pairs]` tokens that chose both."""


def import_coactivation(path: Path, hints: Hints) -> Imported | None:
    """A surrogate trace of a file of loads and pair counts; None where it is no such file.

    Raises:
        TraceError: it is one, and damaged.
        UsageError: k is neither in the file nor in `hints`, or there are tokens to skip.
    """
    value, source = read_json(path, TraceError), str(path)
    layers = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) and "pairs" in layer for layer in layers):
        return None
    if hints.skip_tokens:
        raise UsageError(f"--skip-tokens: {source} has counts, which can't be told apart by token; leave it out")
    if len(layers) > MAX_LAYERS:
        raise TraceError(source, "layers", f"{len(layers)} are over the limit of {MAX_LAYERS}", _MEND)
    counted = [_layer(layer, index, f"{source}: layers[{index}]") for index, layer in enumerate(layers)]
    experts = len(counted[0].loads)
    if any(len(layer.loads) != experts for layer in counted):
        raise TraceError(source, "heat", "layers differ in their number of experts", "import one model at a time")
    k = value.get("k") if type(value.get("k")) is int else hints.need("top_k", "the file doesn't say how many experts a token chooses")
    if not 2 <= int(k or 0) <= experts:
        raise TraceError(source, "k", f"{k} is not in 2..{experts}", "give the experts that a token chooses")
    check_budget(8 * TOKENS * experts, path.stat().st_size, kind=TraceError, source=source, field="experts")
    recorded = np.array([bool(layer.loads.any()) for layer in counted])
    own = _ids(layers)
    numbers = numbers_of_rows(len(layers), hints, source, own)
    rows, kept, notes = choose_layers(numbers, recorded, hints, source, own=own is not None)
    drawn = _draw([counted[row] for row in rows], int(k or 0))
    trace = RoutingTrace(
        topk_ids=np.stack([layer.topk_ids for layer in drawn], axis=1).astype(np.int16),
        num_experts=experts,
        layer_ids=kept,
        model=hints.model or str(value.get("model", "")),
        dataset=hints.dataset,
        surrogate=True,
        source=source,
    )
    return Imported(trace=trace, notes=(*notes, *_how_well(drawn)))


def _draw(layers: list[PairCounts], k: int) -> list[Surrogate]:
    """A surrogate of each layer; the same whatever the number of threads."""
    from grace_moe.engines.recordings.surrogate import draw_surrogate

    with ThreadPoolExecutor(max_workers=min(len(layers), os.cpu_count() or 1)) as pool:
        numbered = enumerate(layers)
        return list(pool.map(lambda at: draw_surrogate(at[1].loads, at[1].pairs, at[1].together, k=k, tokens=TOKENS, seed=at[0]), numbered))


def _how_well(drawn: list[Surrogate]) -> tuple[str, ...]:
    loads, pairs, each = (float(np.mean([getattr(one, name) for one in drawn])) for name in ("load_error", "pair_error", "each_pair_error"))
    return (
        f"a surrogate: {TOKENS:,} tokens drawn to match counts of experts and pairs, as no tokens were recorded. Loads are off by "
        f"{loads:.2%} on the mean, counts of the given pairs by {pairs:.1%} of their sum and {each:.0%} a pair",
        "plan on it, and don't measure on it: compare and evaluate refuse, as how many of a token's experts meet is drawn, not recorded",
    )


def _ids(layers: list[dict[str, Any]]) -> list[int] | None:
    ids = [layer.get("layer", layer.get("layer_id")) for layer in layers]
    return [i for i in ids if type(i) is int] if all(type(i) is int for i in ids) else None


def _layer(value: dict[str, Any], index: int, where: str) -> PairCounts:
    """One layer's counts, its experts numbered from 0."""
    heat, pairs = value.get("heat"), value["pairs"]
    loads = _numbers(heat, where, "heat")
    if loads.ndim != 1 or not 2 <= len(loads) <= MAX_EXPERTS:
        raise TraceError(where, "heat", f"shape {loads.shape} is not a count for each expert", _MEND)
    rows = _numbers([row[:3] for row in pairs if isinstance(row, list)] if isinstance(pairs, list) else pairs, where, "pairs")
    if not rows.size:
        rows = np.zeros((0, 3))
    if rows.ndim != 2 or rows.shape != (len(pairs), 3):
        raise TraceError(where, "pairs", "not lists of expert, expert and count", _MEND)
    ids = rows[:, :2].astype(np.int64)
    first = index * len(loads)
    if ids.size and index and ids.min() >= first and ids.max() < first + len(loads):
        ids = ids - first
    if ids.size and (ids.min() < 0 or ids.max() >= len(loads) or (ids[:, 0] == ids[:, 1]).any()):
        raise TraceError(
            where, "pairs", f"ids {ids.min()}..{ids.max()} are not two of {len(loads)} experts", "number experts by layer, or in all"
        )
    return PairCounts(loads=loads, pairs=ids, together=rows[:, 2])


def _numbers(value: Any, where: str, field: str) -> npt.NDArray[np.float64]:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TraceError(where, field, "not a list of numbers", _MEND) from error
    if array.size and (not np.isfinite(array).all() or array.min() < 0 or array.max() > MAX_COUNT):
        raise TraceError(where, field, f"not all are numbers of 0 to {MAX_COUNT}", _MEND)
    return array
