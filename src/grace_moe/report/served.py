"""What a plan is worth where a model is served: the verdict, a layer's milliseconds, and other clusters (docs/cost.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from grace_moe.cost.step import Setting
from grace_moe.errors import MismatchError
from grace_moe.evaluation import Comparison, ComparisonRow, Diagnosis, SizePoint, Sweep, diagnose, size, stops_mattering
from grace_moe.evaluation.diagnose import NOT_WORTH_IT, WORTH_IT

NODES = (1, 2, 4, 8)
"""Of the clusters that are tried."""
_PARTS = ("dispatch", "compute", "combine", "idle", "hidden")
_TONES = {WORTH_IT: "better", NOT_WORTH_IT: "worse"}


@dataclass(frozen=True, kw_only=True)
class Served:
    """The verdict on a comparison's plans, and what a layer takes on other clusters."""

    diagnosis: Diagnosis
    points: tuple[SizePoint, ...]
    """Of one batch, by nodes and memory; none where the topology's nodes are not alike."""
    notes: tuple[str, ...]
    """Where something stops mattering, or why there are no points."""

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Of a layer now and with the plan; None where too little is known."""
        found = self.diagnosis
        return None if found.now is None or found.planned is None else (found.now.total, found.planned.total)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `grace-moe report --model`, under `served`."""
        return {
            "diagnosis": self.diagnosis.to_dict(),
            "size": [point.to_dict() for point in self.points],
            "notes": list(self.notes),
        }


def served(comparison: Comparison, before: ComparisonRow, plans: Sequence[ComparisonRow], setting: Setting, *, seed: int = 0) -> Served:
    """Judge plans of a comparison in milliseconds, and sweep clusters of 1 to 8 of its nodes.

    Args:
        before: what is now.
        plans: made on what the comparison planned on; the one that is fastest there is judged.
        setting: the model, phase, batch and backend.

    Raises:
        MismatchError: a trace that was drawn to match counts.
    """
    planned_on, measured_on, topology = comparison.planned_on, comparison.measured_on, comparison.topology
    diagnosis = diagnose(
        planned_on,
        topology,
        setting,
        measure_on=measured_on,
        now=before.placement,
        candidates=[row.placement for row in plans],
        seed=seed,
    )
    sweep = Sweep(nodes=NODES, batches=(setting.batch,))
    try:
        points = size(planned_on, topology, setting, sweep, measure_on=measured_on)
    except MismatchError as error:
        return Served(diagnosis=diagnosis, points=(), notes=(str(error),))
    return Served(diagnosis=diagnosis, points=tuple(points), notes=tuple(stops_mattering(points)))


def verdict(found: Served) -> str:
    """HTML: the verdict and its reason."""
    diagnosis = found.diagnosis
    tone = _TONES.get(diagnosis.verdict, "same")
    return (
        f'<p class="verdict"><b class="{tone}">{escape(diagnosis.verdict.capitalize())}.</b> {escape(diagnosis.reason)}.'
        f"{escape(_in_numbers(diagnosis))}</p>"
    )


def _in_numbers(found: Diagnosis) -> str:
    """Milliseconds and gigabytes."""
    if found.now is None or found.planned is None:
        return ""
    low, high = (1e3 * seconds for seconds in found.saved)
    now, planned = (1e6 * found.per_token(time.total) for time in (found.now, found.planned))
    return (
        f" A layer is {low:.3f} to {high:.3f} ms shorter (95%, over requests); a token takes {now:,.1f} us in {found.layers} layers now, "
        f"and {planned:,.1f} us with the plan, for {found.memory_bytes / 1e9:+.2f} GB of experts in all. Modelled, not measured."
    )


def served_sections(found: Served) -> list[str]:
    """HTML: a layer's milliseconds, and other clusters."""
    sections = []
    if found.seconds is not None:
        sections.append(_layer(found.diagnosis))
    return [*sections, _clusters(found)]


def _layer(found: Diagnosis) -> str:
    times = [(name, time) for name, time in (("now", found.now), ("planned", found.planned)) if time is not None]
    rows = [[name, *(f"{1e3 * getattr(time, part):.3f}" for part in ("total", *_PARTS))] for name, time in times]
    return (
        "<h2>Milliseconds of a layer</h2>\n"
        f'<p class="how">Modelled: {escape(found.told)}. Idle is waiting for the busiest device; hidden is what is sent while experts '
        f"compute. To go on: <code>{escape(found.next_command)}</code></p>\n{_table(['', 'total', *_PARTS], rows)}"
    )


def _clusters(found: Served) -> str:
    notes = "".join(f'\n<p class="how">{escape(note[:1].upper() + note[1:])}.</p>' for note in found.notes)
    if not found.points:
        return f"<h2>Other clusters</h2>{notes}"
    heads = ["cluster", "slots over experts", "experts in order, ms", "balanced by load, ms", "saved", "most of it", "GB a device"]
    rows = [
        [
            f"{point.topology}{' *' if point.best else ''}",
            f"{point.redundancy:g}x",
            f"{1e3 * point.in_order.total:.3f}",
            f"{1e3 * point.balanced.total:.3f}",
            f"{point.gain:.0%}",
            str(point.to_dict()["limited_by"]),
            f"{point.memory_bytes / 1e9:.1f}",
        ]
        for point in found.points
    ]
    return (
        "<h2>What a layer would take on other clusters</h2>\n"
        '<p class="how">The same batch over 1 to 8 such nodes, experts replicated and packed by load alone. A star: no other takes '
        f"fewer devices, less memory and less time.</p>\n{_table(heads, rows)}{notes}"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    lines = "\n".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'
