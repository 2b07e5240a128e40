"""METHOD+POLICY in a comparison."""

import pytest

from grace_moe.errors import UsageError
from grace_moe.evaluation import compare
from grace_moe.report import comparison_table
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

TOPOLOGY = Topology.parse("2x2")
TRACE = synthetic_trace(tokens=400, layers=2, experts=16, top_k=4, skew=1.0)


def test_compare_takes_method_and_policy():
    rows = compare(TRACE, TOPOLOGY, methods=("eplb", "eplb+lplb", "linear+metro")).rows
    assert [row.method for row in rows] == ["eplb", "eplb+lplb", "linear+metro"]
    assert rows[0].placement is rows[1].placement
    assert all(row.evaluation.batch_load_max_over_mean is not None for row in rows)
    assert rows[1].evaluation.to_dict() != rows[0].evaluation.to_dict()


def test_the_table_has_the_batches_where_they_were_measured():
    tables = [comparison_table(compare(TRACE, TOPOLOGY, methods=methods)) for methods in (("eplb",), ("eplb", "eplb+lplb"))]
    headings = [[" ".join(str(column.header).split()) for column in table.columns] for table in tables]
    assert [column for column in headings[1] if column not in headings[0]] == ["busiest in batch"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("eplb+best",), r"policy 'best' of 'eplb\+best' is unknown; use one of lplb, metro"),
        (("eplb+",), r"policy '' of 'eplb\+' is unknown"),
        (("best+lplb",), "method 'best' is unknown; use one of grace, "),
    ],
)
def test_what_compare_does_not_know(methods, message):
    with pytest.raises(UsageError, match=message):
        compare(TRACE, TOPOLOGY, methods=methods)
