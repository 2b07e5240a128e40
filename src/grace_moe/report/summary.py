"""The report's numbers as JSON."""

from __future__ import annotations

from typing import Any

from grace_moe.evaluation import ComparisonRow
from grace_moe.report.content import ReportContent
from grace_moe.report.words import sentence


def report_numbers(content: ReportContent) -> dict[str, Any]:
    """The JSON of `grace-moe report --json`: the numbers of the page; no times of this machine, so that runs agree."""
    return {
        **{name: value for name, value in content.comparison.to_dict().items() if name != "rows"},
        "sentence": sentence(content),
        "rows": [_numbers(content, row) for row in content.comparison.rows],
        "memory": [_numbers(content, row) for row in content.memory],
        "affinity": {
            "layer_id": content.affinity.layer_id,
            "together_before": content.affinity.together[0],
            "together_after": content.affinity.together[1],
        },
        "seed": content.seed,
        "version": content.version,
        "command": content.command,
        **({} if content.served is None else {"served": content.served.to_dict()}),
    }


def _numbers(content: ReportContent, row: ComparisonRow) -> dict[str, Any]:
    return {name: value for name, value in row.to_dict(content.topology).items() if name != "plan_seconds"}
