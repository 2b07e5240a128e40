"""docs/metrics.md: it defines every name, and its example by hand is what `evaluate` gives."""

import re

import numpy as np
import pytest

from grace_moe.cost.layer_time import TIMES, modelled_layer_time
from grace_moe.evaluation import METRICS, Serving, evaluate
from grace_moe.topology import Topology
from tests.house import ROOT

from .cases import placement_of, trace_of

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def rows(section):
    """Cells of the tables under a heading, heads and rules apart."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (body,) = [part for part in text if part.startswith(section + "\n")]
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def example():
    """The page's table of tokens, as a trace."""
    tokens = [row for row in rows("By hand") if row[0].isdigit()]
    return trace_of(
        [[[int(expert) for expert in row[3].split(", ")]] for row in tokens],
        5,
        request_ids=np.array([int(row[1]) for row in tokens], np.int32),
        phase=np.array([row[2] == "decode" for row in tokens], np.uint8),
    )


def test_every_metric_is_defined_and_shown():
    defined = [name for row in rows("The metrics") for name in re.findall(r"`(\w+)`", row[0])]
    shown = [row[0].strip("`") for row in rows("By hand") if row[0].startswith("`")]
    assert set(defined) == set(shown) == {*METRICS, *TIMES}


def test_the_example_is_what_evaluate_gives():
    placement = placement_of(Topology.parse("2x2"), [[0], [1], [2], [3], [3]])
    found = evaluate(placement, example(), serving=Serving(batch_tokens=4))
    values = found.to_dict() | modelled_layer_time(found, placement.topology).to_dict()
    for name, _, value in (row for row in rows("By hand") if row[0].startswith("`")):
        assert values[name.strip("`")] == pytest.approx(float(value), rel=4e-4), name


def test_its_counts_are_the_sums():
    found = evaluate(placement_of(Topology.parse("2x2"), [[0], [1], [2], [3], [3]]), example()).copies
    (total,) = [row for row in rows("By hand") if row[0] == "sum"]
    copies = (found.cross_node, found.intra_node, found.flat, found.flat_cross_node, found.pairs, found.pairs_cross_node)
    assert [int(copy.item()) for copy in copies] == [int(cell) for cell in total[5:]]
