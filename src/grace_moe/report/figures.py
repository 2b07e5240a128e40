"""Every figure of the report. No text of a file enters a figure, only numbers and our own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grace_moe.report.content import ReportContent
from grace_moe.report.plot_affinity import affinity_figure
from grace_moe.report.plot_cluster import cluster_figures
from grace_moe.report.plot_frontier import frontier_figure
from grace_moe.report.plot_loads import device_load_figure, expert_load_figure
from grace_moe.report.plot_traffic import traffic_figures
from grace_moe.report.traffic import device_load

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAWN_DEVICES = 16
"""More are shown as a matrix instead of a drawing."""


def figures(content: ReportContent) -> dict[str, go.Figure]:
    """Every figure by the id of its place on the page."""
    most_affinity = float(np.percentile(content.affinity.counts, 99)) or 1.0
    loads = [device_load(row.evaluation) for row in (content.before, content.after)]
    most_load = float(max(load.max() for load in loads))
    clusters = cluster_figures(content) if content.topology.num_devices <= DRAWN_DEVICES else traffic_figures(content)
    found = {"expert-load": expert_load_figure(content), "frontier": frontier_figure(content)}
    for after, side in enumerate(("before", "after")):
        found[f"device-load-{side}"] = device_load_figure(content, loads[after], most_load)
        found[f"affinity-{side}"] = affinity_figure(content, bool(after), most_affinity)
        found[f"cluster-{side}"] = clusters[after]
    return found
