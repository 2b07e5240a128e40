"""The source of the package as syntax trees and as a graph of imports, for the tests of the house."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Function:
    """One function or method: `grace_moe.planning.planner:plan`."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def name(self) -> str:
        return f"{self.module}:{self.node.name}"

    @property
    def lines(self) -> int:
        """From `def` to the last line; decorators apart."""
        return (self.node.end_lineno or self.node.lineno) - self.node.lineno + 1

    @property
    def parameters(self) -> list[ast.arg]:
        """All that a caller may name or place, `self` and `cls` apart."""
        given = self.node.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        return [p for p in named if p.arg not in ("self", "cls")]

    def decorated_by(self, *names: str) -> bool:
        """Whether a decorator is one of these, called or not: `njit`, `click.command`."""
        bare = (d.func if isinstance(d, ast.Call) else d for d in self.node.decorator_list)
        return any(ast.unparse(d) in names for d in bare)


@cache
def modules() -> dict[str, Path]:
    """Module -> its file, of the whole package."""
    found = {}
    for path in sorted((SOURCE / "grace_moe").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def functions() -> tuple[Function, ...]:
    return tuple(
        Function(module, node)
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that one statement imports: `from a import b` is `a.b` where that is a module of ours, else `a`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in modules() else node.module


@cache
def inner_imports() -> tuple[tuple[str, str], ...]:
    """(`module:function`, what it imports) of every import inside a function."""
    found = {(function.name, name) for function in functions() for node in ast.walk(function.node) for name in imported(node)}
    return tuple(sorted(found))


@cache
def import_graph() -> Mapping[str, set[str]]:
    """Module -> modules of ours that it imports anywhere: at the top, inside functions, for type checkers."""
    return {
        module: {name for node in ast.walk(tree(module)) for name in imported(node) if name in modules()} - {module} for module in modules()
    }


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def folder_graph() -> Graph:
    """Folder -> folders that its files import. A package's `__init__` only re-exports, and the package's own root is above all: both apart."""
    found: Graph = defaultdict(set)
    for module, targets in import_graph().items():
        if is_package(module):
            continue
        here = module.rpartition(".")[0]
        for target in targets:
            there = target if is_package(target) else target.rpartition(".")[0]
            if "grace_moe" not in (here, there) and here != there:
                found[here].add(there)
    return dict(found)


def sibling_graphs() -> dict[str, Graph]:
    """Folder -> graph of what lies in it, files and folders alike: an import counts where the ways of its two ends part."""
    found: dict[str, Graph] = defaultdict(lambda: defaultdict(set))
    for module, targets in import_graph().items():
        for target in targets:
            ours, theirs = module.split("."), target.split(".")
            shared = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
            if shared is not None:
                found[".".join(ours[:shared])][".".join(ours[: shared + 1])].add(".".join(theirs[: shared + 1]))
    return {folder: dict(graph) for folder, graph in found.items()}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another (strongly connected, more than one), each sorted."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups = {tuple(sorted({node} | {other for other in reach[node] if node in reach.get(other, ())})) for node in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen
