"""Comparisons to make pages of."""

from dataclasses import replace

import numpy as np

from grace_moe.evaluation import compare, over_memory
from grace_moe.report import report_content
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

QUICK = ("grace", "linear", "eplb")
COMMAND = "grace-moe report t --topology 2x2 -o r.html"


def compared(topology="2x2", methods=QUICK, **options):
    trace = synthetic_trace(**{"tokens": 240, "layers": 2, "experts": 16, "top_k": 4} | options)
    return compare(trace, Topology.parse(topology), methods=methods)


def content_of(comparison):
    """With ours at three amounts of memory."""
    return report_content(comparison, memory=over_memory(comparison, (1.0, 1.5)), command=COMMAND)


def scaled(content, *, copies: float, busiest: float, slots: float):
    """The same content with ours at these multiples of contiguous placement's traffic, balance and memory."""
    before = content.before.evaluation
    before = replace(before, num_tokens=before.num_tokens * 1000, cross_node=before.cross_node * 1000)  # so that rounding is nothing
    before = replace(before, cross_node_links=content.before.evaluation.cross_node_links * 1000)
    links = np.round(before.cross_node_links * copies).astype(np.int64)
    load = before.device_load.mean(axis=1, keepdims=True) * np.array([busiest] + [(4 - busiest) / 3] * 3)
    held = np.round(before.slots * slots).astype(np.int64)
    after = replace(before, cross_node_links=links, cross_node=links.sum(axis=(1, 2)), device_load=load, slots=held)
    changed = {"linear": before, "grace": after}
    rows = tuple(replace(row, evaluation=changed.get(row.method, row.evaluation)) for row in content.comparison.rows)
    return replace(content, comparison=replace(content.comparison, rows=rows))
