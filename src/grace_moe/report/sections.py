"""The page's figures, each under a title that says what it shows."""

from __future__ import annotations

from html import escape

from grace_moe.report import words
from grace_moe.report.cluster_layout import drawing
from grace_moe.report.content import ReportContent
from grace_moe.report.figures import DRAWN_DEVICES
from grace_moe.report.plot_loads import expert_load_range
from grace_moe.report.plot_traffic import traffic_range


def sections(content: ReportContent) -> list[str]:
    """HTML of every section, in order; the figures are put in by the page's script."""
    return [_loads(content), _balance(content), _affinity(content), _cluster(content), _frontier(content)]


def _loads(content: ReportContent) -> str:
    return _section(
        words.load_title(content),
        "A row is a layer, a column an expert; the stronger the colour, the more often it is chosen. "
        "Hot experts load the devices that hold them.",
        f'<div id="expert-load"></div>{_key("0", f"{expert_load_range(content):.1f}x the mean, or more")}',
    )


def _balance(content: ReportContent) -> str:
    return _section(
        words.balance_title(content),
        "The same tokens, by the device that computes them. A strong colour is a device that the others of its layer wait for; "
        "an even load is blank.",
        _pair("device-load") + _key("the mean or less", "the busiest of both sides"),
    )


def _affinity(content: ReportContent) -> str:
    lines = "lines are between devices, thick ones between nodes" if _is_drawn(content) else "lines are between nodes"
    return _section(
        words.affinity_title(content),
        f"Layer {content.affinity.layer_id}, whose gain is the median. Both sides show the same experts, ordered by device: "
        f"{lines} (a replicated expert stands where it computes most). A cell is the "
        "tokens that chose both experts: strong blocks on the diagonal mean that experts that fire together live together.",
        _pair("affinity", shape=(1, 1)) + _key("never together", "often together (the top 1%)"),
    )


def _cluster(content: ReportContent) -> str:
    if _is_drawn(content):
        return _section(
            words.cluster_title(content),
            "Boxes are nodes, squares devices. A line is as wide as the copies that it carries, both ways, on the same scale before and "
            "after; the numbers are copies per token and layer.",
            _pair("cluster", shape=drawing(content.topology).span),
        )
    return _section(
        words.cluster_title(content),
        "A cell is the copies that its row's device sends to its column's, per token and layer. Copies between nodes go to the "
        "device of the same rank there, which hands them on: those are the diagonal stripes.",
        _pair("cluster", shape=(1, 1)) + _key("0", f"{traffic_range(content):.3f} copies"),
    )


def _frontier(content: ReportContent) -> str:
    memory = " The line is GRACE with other amounts of expert memory (1.00x has no replicas)." if len(content.memory) > 1 else ""
    return _section(
        words.frontier_title(content),
        f"Each point is a method: left is less traffic, down is better balance.{memory} Touch a point for its numbers.",
        '<div id="frontier"></div>',
    )


def _is_drawn(content: ReportContent) -> bool:
    return content.topology.num_devices <= DRAWN_DEVICES


def _section(title: str, how: str, figure: str) -> str:
    return f'<section><h2>{escape(title)}</h2>\n<p class="how">{escape(how)}</p>\n{figure}</section>'


def _pair(name: str, *, shape: tuple[float, float] | None = None) -> str:
    """Before and after side by side; `shape` is width and height of figures that keep their proportions."""
    kind = "" if shape is None else f' style="aspect-ratio:{shape[0]:.3f}/{shape[1]:.3f}"'
    return (
        f'<div class="pair"><div class="before"><h3>Before: contiguous</h3><div id="{name}-before"{kind}></div></div>'
        f'<div class="after"><h3>After: GRACE</h3><div id="{name}-after"{kind}></div></div></div>'
    )


def _key(low: str, high: str) -> str:
    return f'<p class="key">{escape(low)} <i></i> {escape(high)}</p>'
