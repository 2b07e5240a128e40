"""Comparisons to make pages of."""

from dataclasses import replace

import numpy as np

from grace_moe.evaluation import compare, over_memory
from grace_moe.planning import plan
from grace_moe.report import report_content
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

QUICK = ("grace", "linear", "eplb")
COMMAND = "grace-moe report t --topology 2x2 -o r.html"


def compared(topology="2x2", methods=QUICK, *, stand_in=True, **options):
    """A comparison of methods; EPLB's placement stands in for ours, which takes longer to plan, unless told otherwise."""
    trace = synthetic_trace(**{"tokens": 240, "layers": 2, "experts": 16, "top_k": 4} | options)
    planned_on, measured_on = trace.split_requests()
    topology = Topology.parse(topology)
    placements = {"grace": plan(planned_on, topology, "eplb")} if stand_in else None
    return compare(planned_on, topology, measure_on=measured_on, methods=methods, placements=placements)


def content_of(comparison):
    """With ours at three amounts of memory."""
    return report_content(comparison, memory=over_memory(comparison, (1.0, 1.5)), command=COMMAND)


def scaled(content, *, copies: float, busiest: float, slots: float):
    """The same content with ours at these multiples of contiguous placement's traffic, balance and memory."""
    was = content.before.evaluation
    links = tuple(layer * 1000 for layer in was.cross_node_links)  # so that rounding is nothing
    many = replace(was.copies, cross_node=was.copies.cross_node * 1000)
    before = replace(was, num_tokens=was.num_tokens * 1000, cross_node_links=links, copies=many)
    sent = tuple((layer * copies).rint().astype(np.int64) for layer in links)
    after = replace(
        before,
        cross_node_links=sent,
        copies=replace(many, cross_node=np.array([layer.sum() for layer in sent])),
        device_load=before.device_load.mean(axis=1, keepdims=True) * np.array([busiest] + [(4 - busiest) / 3] * 3),
        slots=np.round(before.slots * slots).astype(np.int64),
    )
    changed = {"linear": before, "grace": after}
    rows = tuple(replace(row, evaluation=changed.get(row.method, row.evaluation)) for row in content.comparison.rows)
    return replace(content, comparison=replace(content.comparison, rows=rows))
