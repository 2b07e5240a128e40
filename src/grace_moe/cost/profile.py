"""Fits links and an expert kernel to a profile of ours: the Chrome trace that `grace-moe run --profile` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grace_moe.cost.calibration import Fit
from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.fitting import Floats, error_of, held_out, relative_fit
from grace_moe.errors import InputFileError
from grace_moe.files import read_json
from grace_moe.topology import Link

MACHINE = "profile"
_MEND = "give the file that grace-moe run --profile wrote"
_FEWEST = 6
"""Spans of a kind that are fitted."""
_EXCHANGED = ("intra_node_bytes", "cross_node_bytes")
_COMPUTED = ("active_experts", "pairs")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The spans of a run."""

    source: str
    exchanges: Floats
    """`[spans, 3]` bytes inside nodes and between them, of the rank that sent most, and seconds, of the rank that came last: it alone did
    not wait."""
    computed: Floats
    """`[spans, 3]` active experts, pairs, and seconds, of each rank."""


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        InputFileError: not one, or without spans that tell what was sent and computed.
    """
    source = str(path)
    value = read_json(path, InputFileError)
    events = value.get("traceEvents") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise InputFileError(source, "traceEvents", "missing", _MEND)
    exchanges: dict[tuple[Any, ...], list[tuple[float, float, float, float]]] = {}
    computed = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, event in enumerate(events):
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        args = event.get("args")
        counts = args if isinstance(args, dict) else {}
        where = (event.get("pid"), event.get("name"), counts.get("layer"), counts.get("step"))
        if all(name in counts for name in _COMPUTED):
            computed.append([*(_number(counts[name], source, number, name) for name in _COMPUTED), _seconds(event, source, number)])
        elif all(name in counts for name in _EXCHANGED):
            turn = (*where, event.get("tid"))
            seen[turn] = seen.get(turn, 0) + 1
            near, far = (_number(counts[name], source, number, name) for name in _EXCHANGED)
            start = _number(event.get("ts"), source, number, "ts")
            exchanges.setdefault((*where, seen[turn]), []).append((near, far, start, _seconds(event, source, number)))
    if len(computed) < _FEWEST:
        raise InputFileError(source, "traceEvents", f"{len(computed)} spans of computing", _MEND)
    together = [_together(ranks) for ranks in exchanges.values()]
    return Profile(source=source, exchanges=np.array(together).reshape(-1, 3), computed=np.array(computed))


def _together(ranks: list[tuple[float, float, float, float]]) -> list[float]:
    """One exchange of all ranks."""
    last = max(ranks, key=lambda rank: rank[2])
    return [max(rank[0] for rank in ranks), max(rank[1] for rank in ranks), last[3]]


def _seconds(event: dict[str, Any], source: str, number: int) -> float:
    return _number(event.get("dur"), source, number, "dur") * 1e-6


def _number(value: Any, source: str, number: int, name: str) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e18:
        raise InputFileError(source, f"traceEvents[{number}].{name}", "missing, or not a number of 0 or more", _MEND)
    return float(value)


def fit_profile(profile: Profile) -> tuple[ExpertKernel, dict[str, Link], list[Fit]]:
    """The expert kernel, the links that the spans tell of by their names in a topology, and how well both predict.

    The kernel counts experts and pairs of the model that was run: of another size it tells nothing.
    """
    computed = profile.computed[profile.computed[:, 2] > 0]
    columns = np.column_stack([np.ones(len(computed)), computed[:, :2]])
    launch, expert, pair = relative_fit(columns, computed[:, 2])
    kernel = ExpertKernel(
        phase="any", launch_s=float(launch), expert_s=float(expert), byte_s=0.0, pair_s=float(pair), flop_s=0.0, machine=MACHINE, name="run"
    )
    fits = [_fit("compute", columns, computed[:, 2])]
    links: dict[str, Link] = {}
    sent = profile.exchanges[(profile.exchanges[:, 2] > 0) & profile.exchanges[:, :2].any(axis=1)]
    if len(sent) >= _FEWEST:
        columns = np.column_stack([np.ones(len(sent)), sent[:, :2]])
        latency, near, far = relative_fit(columns, sent[:, 2])
        fits.append(_fit("dispatch and combine", columns, sent[:, 2]))
        links = {
            name: Link(bandwidth_bytes_per_s=1 / float(each), latency_s=float(latency))
            for name, each in (("intra_node", near), ("cross_node", far))
            if each > 0
        }
    return kernel, links, fits


def _fit(what: str, columns: Floats, seconds: Floats) -> Fit:
    found = columns @ relative_fit(columns, seconds)
    return Fit(
        what=what,
        backend=MACHINE,
        error=error_of(found, seconds),
        held_out=held_out(lambda rows: columns @ relative_fit(columns[rows], seconds[rows]), seconds),
    )
