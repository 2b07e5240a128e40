"""What tests of commands share: a trace, an empty folder, and the entry point called in this process."""

from pathlib import Path

import pytest

from grace_moe.cli import main
from grace_moe.trace import synthetic_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.safetensors"
    synthetic_trace(tokens=200, layers=2, experts=16, top_k=4).save(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capfd):
    """Calls the entry point: exit code, stdout, stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run
