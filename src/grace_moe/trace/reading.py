"""Files of recordings: tokens where they have them, else loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grace_moe.errors import TraceError
from grace_moe.trace.joining import mixed
from grace_moe.trace.load_profile import LoadProfile, mixed_loads
from grace_moe.trace.model import RoutingTrace
from grace_moe.trace.statistics import expert_loads
from grace_moe.trace.store import read_fields


def read_recording(path: str | Path) -> RoutingTrace | LoadProfile:
    """Read a `grace-moe.trace` file, of tokens or of counts. Raises TraceError with file, field and mend."""
    fields = read_fields(Path(path))
    counts_only = fields.pop("counts_only")
    rows = RoutingTrace(**fields)
    if not counts_only:
        return rows
    if rows.top_k != 1:
        raise TraceError(rows.source, "counts_only", f"k = {rows.top_k}, and counts have one expert a row", "import them again")
    return LoadProfile(loads=expert_loads(rows), layer_ids=rows.layer_ids, model=rows.model, dataset=rows.dataset, source=rows.source)


def mixed_recordings(recordings: Sequence[RoutingTrace | LoadProfile]) -> RoutingTrace | LoadProfile:
    """One recording in which several of the same model weigh the same (`mixed`, `mixed_loads`).

    Raises:
        TraceError: different models, experts, layers or k; or tokens and loads together.
    """
    traces = [recording for recording in recordings if isinstance(recording, RoutingTrace)]
    profiles = [recording for recording in recordings if isinstance(recording, LoadProfile)]
    if traces and profiles:
        problem, mend = f"counts, but {traces[0].source} has tokens", "join tokens with tokens, or counts with counts"
        raise TraceError(profiles[0].source, "counts_only", problem, mend)
    return mixed(traces) if traces else mixed_loads(profiles)
