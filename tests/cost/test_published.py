"""Figures that others published: the model has their order, on presets as they ship (benchmarks/published.csv)."""

import csv
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RIGHT = 0.95


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published

    return published


def test_orders_and_signs_are_right(published):
    found = published.figures(published.Given())
    assert len(found) >= 24
    assert {figure.table for figure in found} <= set(published.SOURCES)
    orders = list(published.judged(found))
    missed = [order.what for order in orders if not order.right]
    assert len(missed) <= (1 - RIGHT) * len(orders), missed
    assert {what.partition(",")[0] for what in missed} <= {"deepep-normal-h800"}  # its NVLink is slower than any that was fitted


def test_ties_are_not_judged(published):
    def figure(point, measured, modelled, unit="us"):
        return published.Figure(table="t", series="s", point=point, unit=unit, measured=measured, modelled=modelled)

    assert not list(published.judged([figure("a", 100, 1), figure("b", 104, 2)]))
    assert [order.right for order in published.judged([figure("a", 100, 1), figure("b", 110, 2)])] == [True]
    assert [order.right for order in published.judged([figure("a", 100, 2), figure("b", 110, 2)])] == [False]
    signs = list(published.judged([figure("a", -40, 3, "% of Occult"), figure("b", 1.5, -3, "% of Occult")]))
    assert [order.right for order in signs] == [False, False]  # their order, and the sign of one: the other is a tie


def test_every_row_has_its_source_and_a_model(published):
    with published.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["table"] for row in rows} == set(published.SOURCES)
    assert {row["model"] for row in rows} == set(published.MODELS)
    assert all(float(row["measured"]) for row in rows)
