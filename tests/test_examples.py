"""Examples in docstrings (`>>>`): every one of the package runs in every test run."""

import doctest
import importlib

import pytest

from tests.house import modules

WITH_EXAMPLES = [name for name, path in modules().items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_show(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_what_the_readme_shows_has_examples():
    homes = ("placement.model", "topology.model", "trace.model", "evaluation.replay", "evaluation.compare", "planning.planner")
    assert {"grace_moe", *(f"grace_moe.{home}" for home in homes)} <= set(WITH_EXAMPLES)
