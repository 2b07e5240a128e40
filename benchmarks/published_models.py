"""What the cost model says of each figure in `published.csv`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.cost.backends import FP8_SCALE, Cluster, exchange_seconds
from grace_moe.cost.compute import device_seconds, expert_seconds
from grace_moe.cost.exchange import HIGH_THROUGHPUT, LOW_LATENCY, Exchange, uniform_exchange
from grace_moe.cost.flows import FLAT, Flows
from grace_moe.cost.hardware import expert_kernel, hardware_of, transport_kernel
from grace_moe.cost.packing import packed, replica_counts
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.cost.step import Setting, step_time
from grace_moe.evaluation.flows import replay_flows

V3 = ModelSizes(num_experts=256, top_k=8, hidden_size=7168, expert_size=2048, weight_bytes=1.0, source="DeepSeek-V3")
V2_LITE = ModelSizes(num_experts=64, top_k=6, hidden_size=2048, expert_size=1408, source="DeepSeek-V2-Lite")
DEVICES_PER_NODE = 8
GROUPS = 4
"""Nodes at most that a token of DeepSeek-V3 goes to (top-4 groups)."""
TRAINING_SMS = 24
"""That DeepEP's own tests of normal kernels take."""
TRANSLATION = (128.0, 164.1)
"""Mean and standard deviation of tokens by expert in TensorRT-LLM's table."""
PAPER = "2x2:a100-25g"
WAYS = {
    "Occult": ("occult", {}, "flat"),
    "Occult + HSC": ("occult", {}, "hierarchical"),
    "HG + HSC": ("grace_paper", {"replication": "none"}, "hierarchical"),
    "+ FR + WRR": ("grace_paper", {"replication": "fixed", "replica_choice": "wrr"}, "hierarchical"),
    "+ DR + WRR": ("grace_paper", {"replica_choice": "wrr"}, "hierarchical"),
    "+ DR + TAR": ("grace_paper", {}, "hierarchical"),
}
"""Method, its options and transport of each column of the paper's table."""


@dataclass(frozen=True, eq=False)
class Given:
    """Traces of OLMoE and DeepSeek-V2-Lite, for the paper's tables; none = those are left out."""

    traces: tuple[RoutingTrace, ...] = ()


def _h100(ranks: float, nvlink: float | None = None) -> Topology:
    nodes = max(1, int(ranks) // DEVICES_PER_NODE)
    topology = Topology.parse(f"{nodes}x{DEVICES_PER_NODE}:h100-400g")
    if nvlink is None:
        return replace(topology, hardware="h100")
    inside = replace(topology.intra_node, bandwidth_bytes_per_s=nvlink)
    return replace(topology, hardware="h100", intra_node=inside)


def _exchange(ranks: float, tokens: float, sms: float = TRAINING_SMS) -> Exchange:
    sizes = {"tokens": tokens, "top_k": V3.top_k, "experts": V3.num_experts, "hidden": V3.hidden_size, "sms": sms}
    nodes = max(1.0, ranks / DEVICES_PER_NODE)
    numbers = sizes | {"nodes": nodes, "devices_per_node": min(ranks, DEVICES_PER_NODE)}
    return uniform_exchange(**{name: np.array([float(value)]) for name, value in numbers.items()})


def low_latency(given: Given, ranks: str, direction: str, tokens: str, nvlink: str = "1") -> float:
    """Microseconds, by the kernel that was fitted on several nodes; without NVLink all pairs go over the network."""
    at = _exchange(int(ranks), int(tokens))
    if nvlink == "0":
        at = replace(at, near_pairs=at.near_pairs * 0, far_pairs=at.far_pairs + at.near_pairs)
    kernel = transport_kernel(_h100(max(16, int(ranks))), LOW_LATENCY, direction)
    assert kernel is not None
    return 1e6 * float(kernel.seconds(at)[0])


def high_throughput(given: Given, ranks: str, direction: str, tokens: str, nvlink: str) -> float:
    """GB/s of what goes to nodes (to devices, where there is one), the rank's own counted, as DeepEP counts it."""
    count, each = int(ranks), float(tokens)
    nodes = count / DEVICES_PER_NODE
    groups = min(nodes, GROUPS)
    reached = groups * (1 - (1 - 1 / groups) ** V3.top_k)
    devices = groups * DEVICES_PER_NODE * (1 - (1 - 1 / (groups * DEVICES_PER_NODE)) ** V3.top_k)
    own = 1 / nodes
    at = replace(
        _exchange(count, each),
        copies=np.array([each * devices * (1 - 1 / count)]),
        far_copies=np.array([each * reached * (1 - own)]),
    )
    kernel = transport_kernel(_h100(count, 1e9 * float(nvlink)), HIGH_THROUGHPUT, direction)
    assert kernel is not None
    row = V3.hidden_size * (FP8_SCALE if direction == "dispatch" else 2.0)
    return each * (reached if nodes > 1 else devices) * row / float(kernel.seconds(at)[0]) / 1e9


def one_sided(given: Given, ranks: str, direction: str, tokens: str, row_bytes: str) -> float:
    """Microseconds of a row a device, over NVLink, every token to as many devices as it has experts."""
    count, each = int(ranks), float(tokens)
    topology = Topology.parse(f"1x{count}:gb200-nvl72")
    ports = np.zeros((1, 4, 2, count, 2))
    ports[0, FLAT, :, :, 0] = each * V3.top_k * (count - 1) / count
    flows = Flows(
        tokens=np.full(count, each),
        ports=ports,
        per_rate=None,
        slot_device=np.zeros((1, 1), dtype=np.int64),
        slot_pairs=np.ones((1, 1)),
    )
    model = replace(V3, hidden_element_bytes=float(row_bytes) / V3.hidden_size)
    there, back = exchange_seconds("flat", Cluster.of(topology, model), flows, 1.0)
    return 1e6 * float((there if direction == "dispatch" else back)[0])


def busiest_rank(given: Given, ranks: str, slots: str) -> float:
    """Load of the busiest rank over the mean, less one; loads by expert are lognormal, with the mean and spread that were published."""
    mean, spread = TRANSLATION
    sigma = np.sqrt(np.log(1 + (spread / mean) ** 2))
    loads = mean * np.random.default_rng(0).lognormal(-(sigma**2) / 2, sigma, (200, V3.num_experts))
    counts = replica_counts(loads, int(slots))
    each = np.stack([np.repeat(load / count, count) for load, count in zip(loads, counts, strict=True)])
    if int(slots) == V3.num_experts:
        by_rank = loads.reshape(len(loads), int(ranks), -1).sum(axis=2)
    else:
        device = packed(each, int(ranks))
        by_rank = np.stack([np.bincount(row, load, int(ranks)) for row, load in zip(device, each, strict=True)])
    return float((by_rank.max(axis=1) / by_rank.mean(axis=1) - 1).mean())


def experts_ratio(given: Given, more: str, less: str, tokens: str) -> float:
    """Time of a rank's experts in decode, with 288 slots over `more` ranks, over that with 256 over `less`."""
    times = []
    for ranks, slots in ((int(more), 288), (int(less), 256)):
        kernel = expert_kernel(hardware_of(_h100(16)), "decode", V3)
        here = slots // ranks
        pairs = np.full(here, float(tokens) * V3.top_k / here)
        times.append(float(device_seconds(kernel, expert_seconds(kernel, V3, pairs).sum(), np.array(True))))
    return times[0] / times[1]


def component(given: Given, metric: str, way: str) -> float:
    """Percent more than Occult, mean over the traces."""
    parts = [
        _measures(given, which, way.replace("_", " "))[metric] / _measures(given, which, "Occult")[metric]
        for which in range(len(given.traces))
    ]
    return 100 * (float(np.mean(parts)) - 1)


def grouping(given: Given, metric: str, grouping: str) -> float:
    """Milliseconds of all of OLMoE's layers in one batch."""
    planned_on, measured_on = given.traces[0].split_requests()
    placement = plan(planned_on, Topology.parse(PAPER), "grace_paper", grouping=grouping, replication="none", r=0.15)
    return given.traces[0].num_layers * _of_placement(placement, measured_on, OLMOE, "hierarchical")[metric]


@cache
def _measures(given: Given, which: int, way: str) -> Mapping[str, float]:
    """What the paper's table has of one method on one trace."""
    method, options, backend = WAYS[way]
    planned_on, measured_on = given.traces[which].split_requests()
    placement = plan(planned_on, Topology.parse(PAPER), method, **options)
    return _of_placement(placement, measured_on, (OLMOE, V2_LITE)[which], backend)


def _of_placement(placement: Placement, trace: RoutingTrace, model: ModelSizes, backend: str) -> Mapping[str, float]:
    counted = evaluate(placement, trace)
    time = step_time(replay_flows(placement, trace)[0], placement.topology, Setting(model=model, backend=backend))
    between = counted.flat_cross_node_copies if backend == "flat" else counted.cross_node_copies
    inside = counted.flat_copies - counted.flat_cross_node_copies if backend == "flat" else counted.intra_node_copies
    return {
        "all-to-all_time": 1e3 * (time.dispatch + time.combine),
        "traffic_between_nodes": between,
        "traffic_inside_nodes": inside,
        "idle_time": 1e3 * time.idle,
        "standard_deviation_of_load": counted.load_std_over_mean,
    }


MODELS: Mapping[str, Callable[..., float]] = {
    "low_latency": low_latency,
    "high_throughput": high_throughput,
    "one_sided": one_sided,
    "busiest_rank": busiest_rank,
    "experts_ratio": experts_ratio,
    "component": component,
    "grouping": grouping,
}
"""By the names of `published.csv`. Each takes what is given and its row's arguments."""
