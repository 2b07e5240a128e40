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
    shown = {"grace_moe", "grace_moe.trace.model", "grace_moe.topology.model", "grace_moe.placement.model"}
    assert shown - OPEN <= set(WITH_EXAMPLES)


OPEN = {"grace_moe.trace.model", "grace_moe.topology.model", "grace_moe.placement.model"}
