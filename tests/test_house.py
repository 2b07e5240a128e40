"""The house itself: how long its files and functions are, and which way imports run (CONTRIBUTING.md, 'The house')."""

import statistics

from tests.house import (
    cycles,
    folder_graph,
    functions,
    import_graph,
    inner_imports,
    modules,
    sibling_graphs,
)

MOST_FILE_LINES, MEDIAN_FILE_LINES = 320, 90
MOST_FUNCTION_LINES, USUAL_FUNCTION_LINES = 70, 30
MOST_PARAMETERS = 8

SEAMS = {
    "grace_moe.planning.planner:plan": "the front door: each argument is an option of the command line",
    "grace_moe.trace.synthetic:synthetic_trace": "a generator for tests: each argument is a property of the trace",
    "grace_moe.planning.grace.grace:grace": "a method's options are its keyword arguments",
}
"""Functions that may take more than MOST_PARAMETERS, and why. Commands of click may too: a parameter is an option. So may
kernels of Triton: a parameter is a pointer."""

HEAVY = {
    "torch": "of an extra; seconds to import",
    "huggingface_hub": "comes with an extra",
    "plotly": "of an extra",
    "prometheus_client": "of an extra",
    "numba": "half a second to import, for one method",
    "vllm": "an engine: its plug-in runs inside of it, and everything else without",
    "sglang": "an engine, likewise",
}
"""Packages that a function may import, so that a start without them is light."""

INNER = {
    "grace_moe.engines.vllm.model_choice:_kernel": "Triton is where vLLM has a GPU",
    "grace_moe:__getattr__": "names of the package are loaded when they are used",
    "grace_moe.engines.recordings.coactivation:_draw": "numba takes long to import, and one importer of many needs it",
    "grace_moe.cost.flow_counter:_count_copies": "numba takes long to import, and commands import what counts before it counts",
    "grace_moe.adapt.decide:__init__": "the same, of what decides",
    "grace_moe.adapt.by_counts.levelling:levelled": "likewise",
    "grace_moe.cli.front:front": "what listens comes with an extra",
    "grace_moe.runtime.job.on_rank:_adapting": "planning takes long to import, and a run without it need not",
    "grace_moe.cli.run:run": "the same, of a run without metrics",
    "grace_moe.runtime.job.results:_status": "likewise",
    "grace_moe.runtime.job.worker:work": "the launcher is watched before torch is imported",
    "grace_moe.runtime.job.rank_parent:_import_model": "likewise",
}
"""Other functions that may import, and why."""


def test_files_are_short_enough_to_read():
    long = {module for module, path in modules().items() if path.read_text().count("\n") > MOST_FILE_LINES}
    assert long == set()


def test_most_files_are_short():
    assert statistics.median(path.read_text().count("\n") for path in modules().values()) <= MEDIAN_FILE_LINES


def test_functions_are_short():
    assert {f.name: f.lines for f in functions() if f.lines > MOST_FUNCTION_LINES} == {}
    lengths = sorted(f.lines for f in functions())
    assert lengths[int(0.95 * len(lengths))] <= USUAL_FUNCTION_LINES


def test_functions_take_few_parameters():
    many = {f.name for f in functions() if len(f.parameters) > MOST_PARAMETERS and not f.decorated_by("click.command", "triton.jit")}
    assert many == set(SEAMS)


def test_parameters_have_types():
    bare = {
        f.name: [p.arg for p in f.parameters if p.annotation is None]
        for f in functions()
        if any(p.annotation is None for p in f.parameters) and not f.decorated_by("njit", "numba.njit")
    }
    assert bare == {}


def test_no_file_is_in_a_circle_of_imports():
    assert cycles(import_graph()) == []


def test_no_folder_is_in_a_circle_of_imports():
    found = [*cycles(folder_graph()), *(circle for graph in sibling_graphs().values() for circle in cycles(graph))]
    assert found == []


def test_functions_import_only_what_keeps_the_start_light():
    others = [
        (function, name)
        for function, name in inner_imports()
        if name.split(".")[0] not in HEAVY and function not in INNER and not _starts_torch(function, name)
    ]
    assert others == []


def _starts_torch(function, name):
    """The command line and the demo must import without torch, and the runtime can't."""
    return function.startswith(("grace_moe.cli.", "grace_moe.demo.")) and name.startswith("grace_moe.runtime.")


def test_every_exception_is_needed():
    assert set(INNER) <= {function for function, _ in inner_imports()}
    assert set(HEAVY) <= {name.split(".")[0] for _, name in inner_imports()}


def test_circles_are_found():
    """The check can fail."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}
    assert cycles(graph) == [["a", "b", "c"]]
    assert cycles({"a": {"b"}, "b": {"d"}, "d": set()}) == []
