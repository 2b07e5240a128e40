import inspect
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from grace_moe.errors import UsageError
from grace_moe.placement import Placement
from grace_moe.planning import METHODS, plan
from grace_moe.topology import Topology
from grace_moe.trace import RoutingTrace, synthetic_trace

TOPOLOGY = Topology.regular(2, 2)
TRACE = synthetic_trace(tokens=300, layers=2, experts=12, top_k=3)


def options(method):
    """A short search: what these tests ask doesn't depend on how good a plan is."""
    return {"effort": 0.05} if method == "grace" else {}


def test_methods_are_public():
    peers = {"linear", "round_robin", "eplb", "occult", "c2r", "cooccurrence", "biased", "moetuner", "exflow"}
    assert set(METHODS) >= {"grace", "grace_paper"} | peers


@pytest.mark.parametrize("method", METHODS)
def test_provenance_tells_how_to_repeat(method):
    placement = plan(TRACE, TOPOLOGY, method, seed=4, **options(method))
    provenance = placement.provenance
    assert list(provenance) == ["method", "options", "seed", "trace_digest", "trace", "version", "notes"]
    assert provenance["method"] == method
    assert provenance["seed"] == 4
    assert provenance["trace_digest"] == TRACE.digest
    assert provenance["trace"] == {"model": "synthetic", "dataset": TRACE.dataset, "tokens": 300}
    assert provenance["version"] == version("grace-moe")
    again = {name: value for name, value in provenance["options"].items() if value is not None}
    assert plan(TRACE, TOPOLOGY, method, seed=4, **again) == placement
    assert placement.layer_ids == TRACE.layer_ids
    assert placement.model == "synthetic"


@pytest.mark.parametrize("method", METHODS)
def test_saved_placement_is_the_same_in_the_same_bytes(method, tmp_path):
    placement = plan(TRACE, TOPOLOGY, method, **options(method))
    placement.save(tmp_path / "a.json")
    plan(TRACE, TOPOLOGY, method, **options(method)).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = Placement.load(tmp_path / "a.json")
    assert loaded.layers == placement.layers
    assert loaded.provenance == placement.provenance


def test_default_method():
    assert plan(TRACE, TOPOLOGY, effort=0.05).provenance["method"] == "grace"


def test_progress_is_reported_layer_by_layer():
    for method in METHODS:
        steps = []
        plan(TRACE, TOPOLOGY, method, progress=lambda done, total, steps=steps: steps.append((done, total)), **options(method))
        assert steps == [(1, 2), (2, 2)], method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, r"method 'magic' is unknown; use one of grace, grace_paper, linear, "),
        ({"method": "occult", "seeds": 1}, r"method occult has no option 'seeds'; it has seed_rule"),
        ({"method": "linear", "r": 0.1}, r"method linear has no option 'r'; it has none"),
        ({"seed": -1}, r"seed -1 is out of range"),
        ({"redundancy": 0.5}, r"redundancy 0.5 is out of range; use 1 \(no replicas\) to 4"),
        ({"redundancy": float("nan")}, r"redundancy nan is out of range"),
        ({"redundancy": 4.5}, r"redundancy 4.5 is out of range"),
        ({"redundancy": 1.5, "slots_per_device": 4}, r"both set the number of slots; give one"),
        ({"slots_per_device": 2}, r"2 on 4 devices leaves some of 12 experts without a slot; use at least 3"),
    ],
)
def test_errors_name_the_mend(arguments, message):
    with pytest.raises(UsageError, match=message):
        plan(TRACE, TOPOLOGY, **arguments)


def test_redundancy_that_is_rounded_to_whole_slots_says_to_what():
    """12 experts on 4 devices: 13.2 slots are 4 a device, 16 in all."""
    for method in ("eplb", "grace"):
        said = "redundancy 1.1 became 1.33: 4 slots on each of 4 devices"
        assert said in plan(TRACE, TOPOLOGY, method, redundancy=1.1).provenance["notes"]
        assert not any("became" in note for note in plan(TRACE, TOPOLOGY, method, redundancy=4 / 3).provenance["notes"])


@pytest.mark.parametrize(("experts", "shape", "slots"), [(12, "2x2", 3), (13, "2x2", 4), (3, "2x2", 1)])
def test_auto_redundancy_is_the_least_that_fits(experts, shape, slots):
    trace = synthetic_trace(tokens=100, experts=experts, top_k=2)
    placement = plan(trace, Topology.parse(shape), "eplb", redundancy="auto")
    assert (placement.slots_per_device() == slots).all()
    assert placement.provenance["options"]["redundancy"] == "auto"
    assert any(note.startswith(f"redundancy auto became {slots * 4 / experts:.2f}: {slots} slot") for note in placement.provenance["notes"])
    assert plan(trace, Topology.parse(shape), "linear", redundancy="auto").provenance["notes"] == []


@pytest.mark.parametrize("method", METHODS)
def test_fewer_experts_than_devices_are_placed_or_refused(method):
    trace = synthetic_trace(tokens=100, experts=3, top_k=2)
    if method == "grace_paper":
        with pytest.raises(UsageError, match="3 experts on 4 devices: groups need an expert each; use fewer devices, or method eplb"):
            plan(trace, TOPOLOGY, method)
    else:
        assert plan(trace, TOPOLOGY, method).slots_total_over_experts >= 1


@pytest.mark.parametrize("method", METHODS)
def test_no_option_of_a_method_is_an_argument_of_plan(method):
    """Else `plan` could not hand it on; the command line refuses such names by the same signature."""
    own = plan(TRACE, TOPOLOGY, method).provenance["options"].keys() - {"redundancy", "slots_per_device", "expert_bytes"}
    assert not own & inspect.signature(plan).parameters.keys()


def test_a_trace_without_tokens():
    with pytest.raises(UsageError, match=r"synthetic trace: the trace has no tokens; record some, or select others"):
        plan(synthetic_trace(tokens=0, experts=4, top_k=2), TOPOLOGY, "linear")


def test_a_trace_without_layers():
    trace = RoutingTrace(topk_ids=TRACE.topk_ids[:, :0], num_experts=12, layer_ids=(), source="empty.safetensors")
    with pytest.raises(UsageError, match=r"empty.safetensors: the trace has no MoE layers"):
        plan(trace, TOPOLOGY)


def all_plans():
    """Of every method: what a placement holds."""
    trace = synthetic_trace(tokens=300, layers=2, experts=24, top_k=4)
    placements = [plan(trace, Topology.parse("2x3"), method, seed=3, **options(method)) for method in METHODS]
    return [repr((placement.layers, placement.provenance)) for placement in placements]


def test_processes_agree_whatever_their_hash_seed_and_threads():
    """This one has one thread and a hash seed by chance (tests/conftest.py), the other two threads and a hash seed of 2."""
    environment = {**os.environ, "PYTHONHASHSEED": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    script = f"from {__name__} import all_plans; print(all_plans())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{all_plans()}\n"


def test_import_is_light():
    heavy = "import sys, grace_moe.planning; print(sorted({'sklearn', 'kneed', 'torch', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def memory_topology(*memory_bytes):
    return Topology.from_dict({"nodes": [{"devices": [{"memory_bytes": m} for m in memory_bytes]}]})


def test_memory_of_the_devices_limits_the_slots():
    """Two layers of 16 experts of 10 bytes: 100 bytes hold 5 experts a layer, 200 hold 10."""
    trace = synthetic_trace(tokens=200, layers=2, experts=16, top_k=4)
    uneven = memory_topology(100, 100, 200)
    assert (plan(trace, uneven, "grace_paper", expert_bytes=10).slots_per_device() <= [5, 5, 10]).all()
    notes = plan(trace, uneven, "linear", expert_bytes=10).provenance["notes"]  # 6, 5 and 5 experts
    assert notes == ["linear keeps no limit on slots: some device holds more experts than its limit"]
    for method in ("grace", "eplb"):  # equal slots of 5 hold 15 of 16 experts
        with pytest.raises(UsageError, match="the smallest device has room for 5 experts a layer, and equal slots need 6"):
            plan(trace, uneven, method, expert_bytes=10)
        assert (plan(trace, memory_topology(120, 120, 200), method, expert_bytes=10, **options(method)).slots_per_device() == 6).all()


def test_too_little_memory_is_said():
    trace = synthetic_trace(tokens=200, layers=2, experts=16, top_k=4)
    with pytest.raises(UsageError, match=r"room for 15 experts a layer \(least on a device: 5\), 16 are needed"):
        plan(trace, memory_topology(100, 100, 100), expert_bytes=10)
    with pytest.raises(UsageError, match="expert_bytes 0 is out of range"):
        plan(trace, memory_topology(100), expert_bytes=0)
