"""Plans for what a backend sends: each does better on its own measure than the default, on requests that were not planned on."""

import numpy as np
import pytest

from grace_moe.errors import UsageError
from grace_moe.evaluation import compare, evaluate
from grace_moe.placement import LayerPlacement
from grace_moe.planning import plan
from grace_moe.planning.grace.foresight import unit_loads
from grace_moe.planning.grace.predicted_choice import chosen_devices, predict_choice
from grace_moe.topology import Topology
from grace_moe.trace import synthetic_trace

QUICK = {"effort": 0.2}
MEASURES = {"hierarchical": "cross_node_copies", "flat": "flat_cross_node_copies", "deepep_low_latency": "pair_cross_node_copies"}
TRACE = synthetic_trace(tokens=2400, experts=32, top_k=4, requests=60, skew=0.8)


@pytest.fixture(scope="module")
def embedded():
    """The embedded model's routing on its own texts."""
    pytest.importorskip("torch")
    from grace_moe.embedded import embedded_model
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.recording import record_trace, requests_from_text
    from grace_moe.runtime.model.description import load_tokenizer
    from grace_moe.runtime.model.loading import load_whole_model

    folder = embedded_model()
    tokenizer = load_tokenizer(str(folder))
    texts = [(folder / name).read_text() for name in ("prose.txt", "code.txt", "mathematics.txt")]
    requests = requests_from_text(texts, tokenizer, tokens_per_request=32, max_requests=60)
    return record_trace(load_whole_model(str(folder)), requests, GenerationOptions(new_tokens=1, batch_size=60), name="m", dataset="d")[0]


def measured(placement, trace):
    found = evaluate(placement, trace)
    return {backend: found.backend_copies(backend) for backend in MEASURES} | {"allgather": found.load_max_over_mean}


def check_own_measures(trace, shape):
    """Each backend's plan against the default one: less of what it sends; allgather's against EPLB's balance."""
    ours, others = trace.split_requests()
    topology = Topology.parse(shape)
    default = measured(plan(ours, topology, **QUICK), others)
    eplb = measured(plan(ours, topology, "eplb"), others)
    found = {backend: measured(plan(ours, topology, backend=backend, **QUICK), others) for backend in (*MEASURES, "allgather")}
    assert found["hierarchical"] == default
    for backend in ("flat", "deepep_low_latency"):
        assert found[backend][backend] < default[backend]
        assert found[backend]["allgather"] < 1.05 * eplb["allgather"]
    assert found["allgather"]["allgather"] <= eplb["allgather"]


def test_each_backends_plan_is_best_on_its_own_measure(embedded):
    check_own_measures(embedded, "2x2")


def test_on_a_synthetic_trace_too():
    check_own_measures(TRACE, "2x2")


def test_near_replicas_are_predicted_as_they_are_drawn():
    """Two nodes of two devices. Expert 0 is on both devices of node 0 and one of node 1, expert 1 on node 1 alone."""
    layer = LayerPlacement(layer_id=3, devices_of_expert=((0, 1, 2), (3,)), replica_weights=((0.5, 0.3, 0.2), (1.0,)), replica_choice="tar")
    topology, tokens = Topology.parse("2x2"), 4000
    ids = np.tile([0, 1, -1], (tokens, 1))
    choice = predict_choice(layer, topology, ids, 0, "pairs")
    assert choice.copies.tolist() == [[1, 0]] * tokens  # expert 1 from node 0
    loads, _ = unit_loads(choice, np.zeros(tokens, np.int64), np.eye(2))
    for node, devices in enumerate(([0, 1], [2, 3])):
        sources = np.resize(devices, tokens)
        drawn = np.bincount(chosen_devices(layer, topology, ids, sources, 0)[:, :2].ravel(), minlength=4)
        assert loads[0, node] == pytest.approx(drawn, abs=0.03 * tokens)


def test_pairs_are_spared_by_replicas_of_the_hottest_experts_on_the_other_node():
    """One token in a hundred chooses experts 0 to 3 twice as often. Two nodes have four slots to spare: half of what the four send is spared,
    and of every other expert half is sent."""
    generator = np.random.default_rng(0)
    likes = np.repeat([3.0, 1.0], [4, 12])
    ids = np.stack([generator.choice(16, 2, replace=False, p=likes / likes.sum()) for _ in range(3000)])
    trace = synthetic_trace(tokens=3000, experts=16, top_k=2, requests=50)
    trace = type(trace)(topk_ids=ids[:, None].astype(np.int16), num_experts=16, layer_ids=(0,), request_ids=trace.request_ids)
    placement = plan(trace, Topology.parse("2x2"), backend="vanilla", slots_per_device=5, **QUICK)
    assert [len(devices) for devices in placement.layers[0].devices_of_expert] == [2] * 4 + [1] * 12
    cold = (ids >= 4).sum() / len(ids)
    assert evaluate(placement, trace).pair_cross_node_copies == pytest.approx(cold / 2, rel=0.05)


def test_the_backend_is_in_the_provenance_and_decides_the_replica_choice():
    topology = Topology.parse("2x2")
    for backend, choice in (("hierarchical", "joint"), ("flat", "tar"), ("nixl_ep", "tar"), ("allgather", "wrr")):
        placement = plan(TRACE, topology, backend=backend, effort=0.01)
        assert (placement.provenance["backend"], placement.replica_choice) == (backend, choice)
    assert "backend" not in plan(TRACE, topology, effort=0.01).provenance
    eplb = plan(TRACE, topology, "eplb", backend="flat").provenance
    assert "backend flat has no effect: eplb plans the same for all" in eplb["notes"]
    assert "backend" not in eplb


@pytest.mark.parametrize(("shape", "backend"), [("1x72", "allgather"), ("1x63", None), ("1x64", "flat"), ("2x72", None)])
def test_nodes_of_many_devices(shape, backend):
    """A node of GB200 NVL72 has more devices than an integer has bits."""
    trace = synthetic_trace(tokens=300, experts=160, top_k=4, layers=1)
    placement = plan(trace, Topology.parse(shape), backend=backend, redundancy=1.0, effort=0.01)
    by_load = plan(trace, Topology.parse(shape), "eplb", redundancy=1.0)
    assert (placement.slots_per_device() <= by_load.slots_per_device().max()).all()
    assert evaluate(placement, trace).load_max_over_mean <= 1.05 * evaluate(by_load, trace).load_max_over_mean


def test_what_can_not_be_had_is_refused():
    topology = Topology.parse("2x2")
    with pytest.raises(UsageError, match="backend 'pplx' is unknown"):
        plan(TRACE, topology, backend="pplx")
    with pytest.raises(UsageError, match="request_placement saves nothing with allgather"):
        plan(TRACE, topology, backend="allgather", request_placement=True)


@pytest.mark.parametrize("backend", ["flat", "deepep_low_latency", "allgather"])
@pytest.mark.parametrize("options", [{"decode": "experts"}, {"request_placement": True}, {"redundancy": 1}])
def test_other_options_go_with_a_backend(backend, options):
    if backend == "allgather" and "request_placement" in options:
        pytest.skip("refused")
    trace = synthetic_trace(tokens=600, experts=24, top_k=3, requests=40)
    placement = plan(trace, Topology.parse("3x2"), backend=backend, effort=0.02, **options)
    again = plan(trace, Topology.parse("3x2"), backend=backend, effort=0.02, start=placement, **options)
    for found in (placement, again):
        assert evaluate(found, trace).load_max_over_mean < 1.5


def test_compare_shows_what_a_backend_sends():
    comparison = compare(TRACE, Topology.parse("2x2"), methods=("linear", "grace"), backend="deepep_low_latency", redundancy=1.25)
    linear, grace = comparison.to_dict()["rows"]
    assert comparison.to_dict()["backend"] == "deepep_low_latency"
    for row in (linear, grace):
        assert row["backend_copies"] == row["pair_cross_node_copies"]
    assert grace["backend_copies"] < linear["backend_copies"]
    assert comparison.rows[1].placement.provenance["backend"] == "deepep_low_latency"
    assert "backend_copies" not in compare(TRACE, Topology.parse("2x2"), methods=("linear",)).to_dict()["rows"][0]


def test_compares_times_follow_the_backend():
    """Pairs take longer to send than copies to nodes, and gathering takes as long whatever the placement is."""
    topology, methods = Topology.parse("2x2"), ("linear", "eplb")

    def rows(backend):
        return compare(TRACE, topology, methods=methods, backend=backend).to_dict()["rows"]

    by_nodes, by_pairs, gathered = rows("hierarchical"), rows("vanilla"), rows("allgather")
    for one, other in zip(by_nodes, by_pairs, strict=True):
        assert other["modelled_dispatch_time"] > one["modelled_dispatch_time"]
        assert other["modelled_compute_time"] == one["modelled_compute_time"]
    assert gathered[0]["modelled_dispatch_time"] == gathered[1]["modelled_dispatch_time"]
    for name, like in (("nixl_ep", "deepep_low_latency"), ("allgather_reducescatter", "allgather")):
        assert [row["modelled_layer_time"] for row in rows(name)] == [row["modelled_layer_time"] for row in rows(like)]
    plain = compare(TRACE, topology, methods=("linear",)).to_dict()["rows"][0]
    assert by_nodes[0]["modelled_combine_time"] == pytest.approx(plain["modelled_combine_time"])


def test_compare_says_where_a_plan_was_made_for_another_backend():
    topology = Topology.parse("2x2")
    made = plan(TRACE.split_requests()[0], topology, backend="flat", effort=0.01)
    comparison = compare(TRACE, topology, methods=("grace",), backend="vanilla", placements={"grace": made})
    assert comparison.notes == (
        "grace: planned for flat, which sends other things than vanilla; plan with --backend vanilla to spare what it sends",
    )
