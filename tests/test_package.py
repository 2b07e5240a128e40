"""The package from outside: light imports, public names, life without torch."""

import doctest
import importlib
import subprocess
import sys

import pytest

import grace_moe
from grace_moe import errors
from grace_moe.cli import COMMANDS


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_heavy():
    out = run_python(
        "import sys, grace_moe; print([m for m in ('torch', 'transformers', 'scipy', 'sklearn', 'numba', 'rich', 'click') if m in sys.modules])"
    )
    assert out == "[]\n"


def test_planning_and_evaluation_work_without_torch():
    out = run_python(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from grace_moe import Topology, plan, evaluate, compare\n"
        "from grace_moe.trace import synthetic_trace\n"
        "trace = synthetic_trace(tokens=100, experts=16, top_k=4)\n"
        "print(evaluate(plan(trace, Topology.parse('2x2'), 'grace_paper'), trace).num_tokens)\n"
    )
    assert out == "100\n"


def test_the_runtime_without_torch_names_the_extra():
    out = run_python(
        "import importlib.util, grace_moe.runtime as r\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'torch' else find(name)\n"
        "try: r.require_runtime()\n"
        "except Exception as e: print(e.exit_code, e)\n"
    )
    assert out == "6 torch is not installed; install it with: pip install 'grace-moe[runtime]'\n"


def test_all_is_the_public_names_sorted():
    assert sorted(grace_moe.__all__, key=lambda name: (not name.isupper(), name)) == grace_moe.__all__
    assert all(getattr(grace_moe, name) is not None for name in grace_moe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = grace_moe.nothing


def test_doctest_of_the_package():
    assert doctest.testmod(grace_moe).failed == 0


@pytest.mark.parametrize("place", COMMANDS.values())
def test_every_command_can_be_imported(place):
    pytest.importorskip("torch")
    module, _, name = place.partition(":")
    assert getattr(importlib.import_module(module), name).name


def test_exit_codes_are_those_of_the_tree():
    """The tree in the module's docstring is what users read."""
    assert sorted(errors.__all__) == errors.__all__
    for name in errors.__all__:
        line = next(
            line for line in errors.__doc__.splitlines() if line.split("── ")[-1].split()[0:1] == [name] or line.split()[0:1] == [name]
        )
        code = int(line.split(name)[1].split()[0])
        assert getattr(errors, name).exit_code == code
