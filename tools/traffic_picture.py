"""The picture of the README: traffic between devices before and after planning, as an SVG of the report's own figures.

    python tools/traffic_picture.py TRACE --topology 4x4 -o docs/images/traffic.svg

Plans on the first half of the trace's requests, measures on the second. A square is a pair of devices; node by node, row = from, column = to.
"""

import argparse
from pathlib import Path

import numpy as np

from grace_moe import RoutingTrace, Topology, compare
from grace_moe.evaluation import ComparisonRow
from grace_moe.report.content import AFTER, BEFORE
from grace_moe.report.traffic import device_traffic, node_traffic

SIDE, GAP, BETWEEN_NODES = 17, 1, 6
"""Pixels: of a square, between two squares, and more between two nodes."""
MARGIN, HEAD, FOOT, BETWEEN_PANELS = 24, 62, 100, 56
ACROSS, INSIDE = "#d9541e", "#1f6fb5"
"""Colours that tell apart for any kind of colour vision."""
TITLES = {BEFORE: "contiguous placement", AFTER: "GRACE"}
STYLE = "text{font-family:system-ui,sans-serif;fill:#222}.t{font-size:17px;font-weight:600}.s{font-size:14px}.n{font-size:12px;fill:#555}"


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'


def square(x: float, y: float, colour: str, share: float) -> str:
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{SIDE}" height="{SIDE}" fill="{colour}" fill-opacity="{share:.2f}"/>'


def panel(row: ComparisonRow, topology: Topology, left: float, tops: dict[bool, float]) -> list[str]:
    """One placement: its matrix, and its numbers in words."""
    copies = device_traffic(row.evaluation, topology)
    node = topology.node_of_device
    places = np.arange(len(node)) * (SIDE + GAP) + node * BETWEEN_NODES
    width = places[-1] + SIDE
    drawn = [text(left, MARGIN + 14, TITLES[row.method], "t")]
    drawn += [text(left + places[node == n].mean() + SIDE / 2, HEAD - 6, f"node {n}", "n", "middle") for n in range(topology.num_nodes)]
    for source in range(len(node)):
        for target in range(len(node)):
            inside = bool(node[source] == node[target])
            x, y = left + places[target], HEAD + places[source]
            drawn.append(square(x, y, "#8a929c", 0.08))
            if copies[source, target] > 0:
                drawn.append(square(x, y, INSIDE if inside else ACROSS, copies[source, target] / tops[inside]))
    nodes = node_traffic(copies, topology)
    across, within = nodes.sum() - nodes.trace(), nodes.trace()
    below = HEAD + width + 26
    drawn.append(text(left, below, f'<tspan fill="{ACROSS}" font-weight="700">{across:.2f}</tspan> copies of a token between nodes', "s"))
    drawn.append(text(left, below + 20, f'<tspan fill="{INSIDE}" font-weight="700">{within:.2f}</tspan> inside nodes', "s"))
    drawn.append(text(left, below + 40, f"busiest device {row.evaluation.load_max_over_mean:.2f}x the mean", "s"))
    drawn.append(text(left, below + 60, f"expert memory {row.evaluation.slots_total_over_experts:.2f}x", "s"))
    return drawn


def picture(rows: list[ComparisonRow], topology: Topology) -> str:
    node = topology.node_of_device
    same = node[:, None] == node[None, :]
    matrices = [device_traffic(row.evaluation, topology) for row in rows]
    tops = {inside: max(float(m[same == inside].max()) for m in matrices) for inside in (True, False)}
    side = len(node) * (SIDE + GAP) + (topology.num_nodes - 1) * BETWEEN_NODES
    width, height = 2 * MARGIN + 2 * side + BETWEEN_PANELS, HEAD + side + FOOT
    drawn = [f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>']
    for index, row in enumerate(rows):
        drawn += panel(row, topology, MARGIN + index * (side + BETWEEN_PANELS), tops)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    told = " ".join(f"{TITLES[row.method]}: {row.evaluation.cross_node_copies:.2f} copies of a token between nodes." for row in rows)
    return "\n".join([head, f"<title>{told}</title>", f"<style>{STYLE}</style>", *drawn, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--topology", default="4x4")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    topology = Topology.parse(given.topology)
    comparison = compare(RoutingTrace.load(given.trace), topology, methods=(BEFORE, AFTER))
    given.output.write_text(picture(list(comparison.rows), topology), encoding="utf-8")


if __name__ == "__main__":
    main()
