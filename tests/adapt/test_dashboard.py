"""The dashboard, by the types that Grafana publishes: what they do not know of it gets lost on the way through them."""

import copy
import json
from importlib.resources import files
from itertools import combinations

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DEFINITION = "/templating/list/1/definition"
"""Grafana itself writes the query of a variable there too; its types don't know of it."""


@pytest.fixture
def board():
    return json.loads((files("grace_moe.adapt.telemetry") / "dashboard.json").read_text())


def lost_by_grafana(board):
    """Paths of what does not come back the same."""
    register_default_plugins()
    return list(_lost(board, json.loads(JSONEncoder().encode(Dashboard.from_json(board)))))


def _lost(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from _lost(value, theirs.get(name), f"{path}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _lost(one, other, f"{path}/{index}")
    elif ours != theirs:
        yield path


def test_grafana_knows_every_field(board):
    assert lost_by_grafana(board) == [DEFINITION]


@pytest.mark.parametrize("where", ["options", "fieldConfig", "targets"])
def test_a_field_that_it_does_not_know_is_found(board, where):
    bad = copy.deepcopy(board)
    part = bad["panels"][0][where]
    (part[0] if where == "targets" else part)["colour"] = "red"
    assert len(lost_by_grafana(bad)) == 2


def test_panels_do_not_overlap(board):
    places = [panel["gridPos"] for panel in board["panels"]]
    assert max(place["x"] + place["w"] for place in places) == 24
    for one, other in combinations(places, 2):
        apart = [one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at] for at, size in (("x", "w"), ("y", "h"))]
        assert any(apart), (one, other)
