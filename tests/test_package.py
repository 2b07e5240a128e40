"""The package as its user meets it: light, typed names, documented codes."""

import ast
import copy
import importlib
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import grace_moe
from grace_moe import errors, runtime
from grace_moe.cli import COMMANDS


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def public_imports(path: str) -> set[str]:
    """Names that the module imports for type checkers."""
    (block,) = (node for node in ast.parse(Path(path).read_text()).body if isinstance(node, ast.If))
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_importing_it_is_light():
    heavy = ["torch", "transformers", "sklearn", "scipy", "numba", "rich", "click", "numpy"]
    assert python(f"import sys, grace_moe; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_it_plans_and_evaluates_without_torch():
    code = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "transformers", "accelerate"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from grace_moe import METHODS, Topology, compare, evaluate, plan
from grace_moe.engines import EXPORTERS, Hints, SlotMap, equalise
from grace_moe.trace import synthetic_trace
trace = synthetic_trace(tokens=200, experts=16, top_k=4)
print(evaluate(plan(trace, Topology.parse("2x2")), trace).slots_total_over_experts >= 1, end=" ")
print(len(compare(trace, Topology.parse("2x2"), methods=[m for m in METHODS if m != "grace"]).rows) == len(METHODS) - 1, end=" ")
for export in EXPORTERS.values():
    export(SlotMap.of(equalise(plan(trace, Topology.parse("2x2")), trace=trace).placement), Hints(), ())
from grace_moe.cli import main
main(["inspect", "2x2", "--json"])
"""
    assert python(code).startswith('True True {\n  "kind": "topology"')


def test_the_runtime_without_torch_names_the_extra(monkeypatch):
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    with pytest.raises(errors.MissingExtraError) as error:
        runtime.require_runtime()
    assert str(error.value) == "torch is not installed; install it with: pip install 'grace-moe[runtime]'"
    assert error.value.exit_code == 6


def test_public_names():
    names = ["METHODS", "Evaluation", "Placement", "RoutingTrace", "Topology", "compare", "errors", "evaluate", "plan"]
    assert grace_moe.__all__ == sorted(names, key=lambda name: (not name.isupper(), name))
    assert set(names) == public_imports(grace_moe.__file__)
    for name in grace_moe.__all__:
        assert getattr(grace_moe, name) is not None
    assert set(dir(grace_moe)) >= set(grace_moe.__all__)
    with pytest.raises(AttributeError, match="module 'grace_moe' has no attribute 'nothing'"):
        _ = grace_moe.nothing


def test_names_come_when_they_are_asked_for():
    """In a process that has imported nothing else of ours."""
    assert python("import grace_moe; print(grace_moe.errors.UsageError.exit_code, grace_moe.__version__)").startswith("2 ")
    assert python("from grace_moe import *; print(Topology.parse('2x2').shape, errors.GraceError.exit_code)") == "2x2 1"


def test_version_is_the_distributions():
    from importlib.metadata import version

    assert grace_moe.__version__ == version("grace-moe")


@pytest.mark.parametrize("package", ["engines", "evaluation", "placement", "planning", "report", "topology", "trace", "errors"])
def test_every_name_that_a_package_promises_is_there(package):
    module = importlib.import_module(f"grace_moe.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        getattr(module, name)


@pytest.mark.parametrize("target", COMMANDS.values())
def test_every_command_imports(target):
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_error_is_public():
    defined = {node.name for node in ast.parse(Path(errors.__file__).read_text()).body if isinstance(node, ast.ClassDef)}
    assert set(errors.__all__) == defined | {"printable"}
    assert errors.__all__ == sorted(errors.__all__)
    for name in defined:
        assert issubclass(getattr(errors, name), errors.GraceError)


def test_exit_codes_are_the_documented_ones():
    documented = dict(re.findall(r"(\w+Error) +(\d)\b", errors.__doc__))
    assert documented == {name: str(getattr(errors, name).exit_code) for name in errors.__all__ if name.endswith("Error")}


def test_an_input_file_error_is_one_short_line_whatever_was_in_the_file():
    error = errors.TraceError("t\n.safetensors", "x" * 9999, "a\n\tb\x1b[0m\ud800" + "y" * 9999, "mend it")
    assert str(error).isprintable()
    assert str(error).startswith("t .safetensors: xxx")
    assert str(error).endswith("; mend it")
    assert len(str(error)) < 1000
    assert (error.source, error.field) == ("t\n.safetensors", "x" * 9999)


@pytest.mark.parametrize("error", [errors.TraceError("t", "f", "is wrong", "mend it"), errors.MissingExtraError("torch", "runtime")])
def test_errors_cross_processes(error):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)
