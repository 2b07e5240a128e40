"""The verdict and the milliseconds of the page."""

import json
import re

import pytest

from grace_moe.cost.sizes import ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.evaluation import diagnose
from grace_moe.report import html_page, report_content, report_numbers
from grace_moe.report.words import key_numbers

from .pages import compared, content_of

SETTING = Setting(model=ModelSizes(num_experts=16, top_k=4, hidden_size=4096, expert_size=2048, weight_bytes=1.0), batch_tokens=65_536)


@pytest.fixture(scope="module")
def served():
    comparison = compared("2x2:h100-400g", requests=40, tokens=800)
    return report_content(comparison, memory=content_of(comparison).memory, setting=SETTING)


def test_the_page_begins_with_the_verdict_of_diagnose(served):
    comparison = served.comparison
    plans = [served.after.placement, *(row.placement for row in served.memory)]
    options = {"measure_on": comparison.measured_on, "now": served.before.placement, "candidates": plans}
    found = diagnose(comparison.planned_on, comparison.topology, SETTING, **options)
    assert served.served.diagnosis == found
    page = html_page(served)
    told = re.search(r'<p class="verdict"><b class="\w+">(.+?)\.</b> (.+?)</p>', page)
    assert told[1].lower() == found.verdict
    assert told[2].startswith(found.reason)
    assert page.index('class="verdict"') < page.index("<h1>")
    assert f"{1e3 * found.planned.total:.3f}" in page
    assert key_numbers(served)[2].after == pytest.approx(1e3 * found.planned.total)
    assert "modelled<br>ms/layer" not in page


def test_other_clusters_are_a_row_each(served):
    page = html_page(served)
    for point in served.served.points:
        assert f"<td>{point.topology}{' *' if point.best else ''}</td><td>{point.redundancy:g}x</td>" in page
    assert {point.topology for point in served.served.points} == {"1x2", "2x2", "4x2", "8x2"}
    assert {point.batch for point in served.served.points} == {65_536}
    numbers = report_numbers(served)["served"]
    assert numbers["diagnosis"] == served.served.diagnosis.to_dict()
    assert len(numbers["size"]) == len(served.served.points)


def test_without_a_model_there_is_none(content):
    assert content.served is None
    assert 'class="verdict"' not in html_page(content)
    assert "served" not in report_numbers(content)


def test_what_tells_too_little_is_said():
    comparison = compared("2x2", requests=4)
    content = report_content(comparison, setting=SETTING)
    page = html_page(content)
    assert "Not enough evidence.</b> 2 requests to measure prefill on; 8 are the fewest" in page
    assert "Milliseconds of a layer</h2>" not in page


def test_nodes_that_are_not_alike_have_no_other_clusters(tmp_path):
    path = tmp_path / "uneven.json"
    path.write_text(json.dumps({"nodes": [{"devices": [{}, {}, {}]}, {"devices": [{}]}]}))
    content = report_content(compared(str(path)), setting=SETTING)
    assert content.served.points == ()
    assert "nodes of different sizes" in content.served.notes[0]
    assert "<h2>Other clusters</h2>" in html_page(content)
