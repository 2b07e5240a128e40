"""Do two checkouts plan the same? Compares the files of their placements, byte for byte.

    python benchmarks/same_plans.py OLD NEW [--traces FOLDER] [--quick] [--cache FOLDER]

OLD and NEW are checkouts of this repository. Each plans in a process of its own, with its own package and this script's Python, all
methods on the same traces: the embedded model's (recorded by OLD), synthetic ones, and with `--traces` the traces of tokens in a folder.
Whole files are compared, provenance included, as nothing in it changes from run to run
(the note of a rounded redundancy is left out: it is newer). A case that is refused is compared by the kind of
its error. Exit code 1 on any difference.

`--quick` takes smaller traces and a shorter search: a minute a checkout, compilation included. `--cache` keeps recordings, compiled kernels
and digests under a hash of the checkout's sources, so that OLD is planned once. Floating point differs between machines: compare on one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SHAPES = ("2x2", "4x4", "3x5", "8x8", "16x2")
QUICK_SHAPES = ("2x2", "3x5")
UNEQUAL = "unequal speeds"
FAST_METHODS = ("linear", "round_robin", "eplb", "biased", "cooccurrence", "moetuner")
REQUESTS_OF_EMBEDDED = 96
OWN_TRACES = ("embedded", "synthetic", "no requests", "counts only")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One plan."""

    group: str
    trace: str
    """One of `OWN_TRACES`, or a file."""
    shape: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    again: bool = False
    """Whether the second half of the requests is planned from the plan of the first (`start=`)."""

    @property
    def name(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{Path(self.trace).stem} {self.shape} {self.method}{options}{' start=' * self.again}"


def methods_of(checkout: Path) -> list[str]:
    """The methods that a checkout has."""
    return json.loads(run_in(checkout, ["-c", "import grace_moe, json; print(json.dumps(grace_moe.METHODS))"]))


def all_cases(methods: list[str], folder: Path | None, quick: bool) -> Iterator[Case]:
    """Every case, `grace` with a shorter search where it is to be quick."""
    effort = {"effort": 0.05} if quick else {}
    for trace in ("embedded", "synthetic", "no requests"):
        for method in methods:
            own = effort if method == "grace" else {}
            for shape in SHAPES if method == "grace" or not quick else QUICK_SHAPES:
                for limit in ({"redundancy": 1}, {"redundancy": 1.25})[quick and shape != "2x2" :]:
                    yield Case(group=f"{trace}: {method}", trace=trace, shape=shape, method=method, options=limit | own)
    for shape in ("2x2", "4x4", "16x2"):
        for trace in ("embedded", "synthetic"):
            yield Case(group="grace from a plan", trace=trace, shape=shape, method="grace", options=effort, again=True)
            yield Case(group="grace decode=experts", trace=trace, shape=shape, method="grace", options={"decode": "experts"} | effort)
            options = {"request_placement": True} | effort
            yield Case(group="grace request_placement", trace=trace, shape=shape, method="grace", options=options)
    for method in methods:
        own = effort if method == "grace" else {}
        yield Case(group="unequal speeds", trace="synthetic", shape=UNEQUAL, method=method, options=own)
        yield Case(group="counts only", trace="counts only", shape="4x4", method=method)
        yield Case(group="more than 64 nodes", trace="synthetic", shape="70x1", method=method)
    for path in sorted(folder.resolve().glob("*.safetensors")) if folder else ():
        yield from cases_of_file(path, effort)


def cases_of_file(path: Path, effort: dict[str, Any]) -> Iterator[Case]:
    """`grace` and the fast methods on one given trace."""
    shapes = ("2x2", "4x4", *(["8x8"] if path.stem in ("olmoe-1b-7b.wikitext", "flame-moe-290m.pretrain") else []))
    for shape in shapes:
        for method in ("grace", *FAST_METHODS):
            own = effort if method == "grace" else {}
            yield Case(group=f"given: {path.stem}", trace=str(path), shape=shape, method=method, options=own)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--traces", type=Path, help="Folder of trace files.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = (arguments.cache or Path(temporary)).resolve()
        old, new = arguments.old.resolve(), arguments.new.resolve()
        cases = list(all_cases(methods_of(old), arguments.traces, arguments.quick))
        embedded = recorded(old, cache)
        found = [digests(checkout, cases, embedded, cache, arguments.quick) for checkout in (old, new)]
    return report(cases, *found)


def report(cases: list[Case], old: dict[str, str], new: dict[str, str]) -> int:
    """Print a line a group; 1 where any case differs."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    differing = [case for case in cases if old[case.name] != new[case.name]]
    for group, members in groups.items():
        bad = [case for case in members if case in differing]
        refused = sum(old[case.name].startswith("refused") for case in members)
        note = f" ({refused} refused)" if refused else ""
        print(f"{group}: {len(members) - len(bad)} of {len(members)} equal{note}")
        for case in bad:
            print(f"  DIFFERS {case.name}: {old[case.name]} / {new[case.name]}")
    print(f"total: {len(cases) - len(differing)} of {len(cases)} equal")
    return 1 if differing else 0


def digests(checkout: Path, cases: list[Case], embedded: Path, cache: Path, quick: bool) -> dict[str, str]:
    """Case name -> digest of its placement's file, planned by a checkout or read from the cache."""
    own = cache / sources_hash(checkout)
    own.mkdir(parents=True, exist_ok=True)
    setup = hashlib.sha256(Path(__file__).read_bytes() + embedded.read_bytes()).hexdigest()[:16]
    store = own / f"{setup}{'-quick' * quick}.json"
    known: dict[str, str] = json.loads(store.read_text()) if store.exists() else {}
    todo = [case for case in cases if case.name not in known]
    began = time.perf_counter()
    if todo:
        asked = json.dumps({"embedded": str(embedded), "quick": quick, "cases": [asdict(case) for case in todo]})
        environment = {"NUMBA_CACHE_DIR": str(own / "numba")}  # numba does not see a change in a module that a kernel calls
        known |= json.loads(run_in(checkout, [str(Path(__file__).resolve()), "--worker"], asked, environment))
        store.write_text(json.dumps(known, indent=1))
    print(f"{checkout}: {len(todo)} of {len(cases)} planned in {time.perf_counter() - began:.0f} s", flush=True)
    return known


def recorded(checkout: Path, cache: Path) -> Path:
    """The embedded model's routing of its held-out texts."""
    path = cache / f"embedded-{sources_hash(checkout)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        model = run_in(checkout, ["-c", "from grace_moe.embedded import embedded_model; print(embedded_model())"]).strip()
        texts = [part for domain in ("prose", "code", "mathematics") for part in ("--text", f"{model}/{domain}.txt")]
        sizes = ["--requests", str(REQUESTS_OF_EMBEDDED), "--prompt-tokens", "64", "--new-tokens", "8"]
        run_in(checkout, ["-m", "grace_moe", "record", model, *texts, *sizes, "-o", str(path)])
    return path


def sources_hash(checkout: Path) -> str:
    """Names what a checkout plans with."""
    sha = hashlib.sha256()
    for path in sorted((checkout / "src").rglob("*.py")):
        sha.update(f"{path.relative_to(checkout)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:16]


def run_in(checkout: Path, arguments: list[str], given: str = "", environment: dict[str, str] | None = None) -> str:
    """What this Python prints with a checkout's own package."""
    variables = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run([sys.executable, *arguments], input=given, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def work() -> None:
    """In the checkout's process: plan the cases of standard input, print their digests."""
    asked = json.loads(sys.stdin.read())
    cases = [Case(**case) for case in asked["cases"]]
    traces = {name: own_trace(name, Path(asked["embedded"]), asked["quick"]) for name in OWN_TRACES}
    found = {case.name: digest_of(case, traces) for case in cases}
    print(json.dumps(found))


def own_trace(name: str, embedded: Path, quick: bool) -> Any:
    """The trace of this name, made or loaded by the checkout's own package."""
    from grace_moe import RoutingTrace
    from grace_moe.trace import LoadProfile, expert_loads, synthetic_trace

    if name == "embedded":
        trace = RoutingTrace.load(embedded)
        return trace.select(trace.requests < REQUESTS_OF_EMBEDDED // 4) if quick else trace
    size: dict[str, int] = {"tokens": 600, "layers": 1} if quick else {"tokens": 4000, "layers": 2}
    top_k = 1 if name == "counts only" else 6
    trace = synthetic_trace(**size, experts=64, top_k=top_k, clusters=6, affinity=0.8, skew=0.8, requests=60, seed=5)
    if name == "synthetic":
        return trace
    if name == "counts only":
        return LoadProfile(loads=expert_loads(trace), layer_ids=trace.layer_ids)
    return replace(trace, request_ids=None)


def digest_of(case: Case, traces: dict[str, Any]) -> str:
    """The digest of the placement's file, or the kind of error that refuses it."""
    from grace_moe import RoutingTrace, Topology, plan
    from grace_moe.errors import GraceError

    topology = unequal(Topology) if case.shape == UNEQUAL else Topology.parse(case.shape)
    try:
        trace = traces[case.trace] if case.trace in traces else RoutingTrace.load(case.trace)
        start = {}
        if case.again:
            first, trace = trace.split_requests()
            start = {"start": plan(first, topology, case.method, **case.options)}
        placement = plan(trace, topology, case.method, **case.options, **start)
    except GraceError as error:
        return f"refused by {type(error).__name__}"
    notes = placement.provenance["notes"]
    notes[:] = [note for note in notes if " became " not in note]  # what a redundancy was rounded to is said since 2026-11-26
    with tempfile.TemporaryDirectory() as folder:
        placement.save(Path(folder) / "plan.json")
        return hashlib.sha256((Path(folder) / "plan.json").read_bytes()).hexdigest()[:16]


def unequal(topology: Any) -> Any:
    """Three nodes of two, two and three devices of several speeds."""
    speeds = ((2.0, 1.0), (1.0, 1.5), (1.0, 0.5, 1.0))
    return topology.from_dict({"nodes": [{"devices": [{"relative_speed": speed} for speed in node]} for node in speeds]})


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        sys.exit(main())
