"""The page of what was run in which engine: it is what its committed results say, and the results are what the tests showed."""

import runpy
from types import SimpleNamespace

import pytest
import torch  # noqa: F401  the plug-in asks it for GPUs; what a test imports first is forgotten with the test

from grace_moe.engines.tensorrt_llm import balancer  # noqa: F401  likewise
from tests.house import ROOT

pytest_plugins = ["pytester"]
matrix = SimpleNamespace(**runpy.run_path(str(ROOT / "contract/matrix.py")))

TESTS = """
import pytest

@pytest.mark.shows("vllm", "near", "modules")
@pytest.mark.shows("vllm", "joint", "served")
@pytest.mark.parametrize("rank", range(2))
def test_both(rank): pass

@pytest.mark.shows("vllm", "near", "served")
@pytest.mark.parametrize("rank", range(2))
def test_fails_once(rank): assert rank

@pytest.mark.shows("sglang", "place", "modules")
def test_skipped(): pytest.skip("no package")

def test_says_nothing(): pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """The plug-in in a pytest of its own, its page beside it."""
    monkeypatch.chdir(pytester.path)
    (pytester.path / "docs/engines").mkdir(parents=True)
    contract = pytester.mkdir("contract")
    for name in ("matrix.py", "shows.py"):
        (contract / name).write_text((ROOT / "contract" / name).read_text())
    monkeypatch.syspath_prepend(contract)

    def tests(text, *arguments):
        (contract / "test_one.py").write_text(text)
        return pytester.runpytest_inprocess("-p", "shows", "--rootdir", contract, contract, *arguments)

    return tests


def test_the_page_is_what_the_results_say():
    """`python contract/matrix.py` writes it again."""
    assert matrix.page(matrix.Results.load(matrix.RESULTS)) == matrix.PAGE.read_text(encoding="utf-8")


def test_results_are_what_the_tests_showed(run, pytester):
    run(TESTS, "--results", "results.json").assert_outcomes(passed=4, failed=1, skipped=1)
    found = matrix.Results.load(pytester.path / "results.json")
    assert [(one.feature, one.how, one.test, one.passed) for one in found.shown] == [
        ("joint", "served", "test_one.py::test_both", True),
        ("near", "modules", "test_one.py::test_both", True),
        ("near", "served", "test_one.py::test_fails_once", False),
    ]
    assert matrix.cell(found, "vllm", "near") == "**failed**"
    assert matrix.cell(found, "vllm", "joint") == "served"
    assert matrix.cell(found, "sglang", "place") == "not run"
    assert matrix.page(found) == (pytester.path / "docs/engines/matrix.md").read_text()


def test_a_mark_that_the_page_has_no_place_for_is_refused(run):
    result = run('@__import__("pytest").mark.shows("vllm", "teleport", "served")\ndef test_one(): pass\n')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*name an engine, a feature and how, of: vllm, *"])
