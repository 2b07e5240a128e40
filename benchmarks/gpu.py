"""What one GPU can tell: expert kernels by tokens and skew, replica choice, and what the host adds. For `make gpu`.

    python benchmarks/gpu.py --table experts.csv > page.md
    grace-moe calibrate -o gpu.json experts.csv --topology 1x8

Without a GPU it says so in a line and ends. The table is one that `grace-moe calibrate` reads (docs/cost.md#calibrate).
`--device cpu` is for trying it out: the times of a CPU calibrate nothing but that CPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

SHAPES = {"olmoe": (2048, 1024, 8, 64), "qwen3-30b-a3b": (2048, 768, 8, 128), "gpt-oss-20b-sized": (2880, 2880, 4, 32)}
"""Hidden size, expert size, top-k, experts."""
USED = {"cuda": "grouped_mm", "cpu": "by_slot"}
"""By device, the kernel that ranks use there: what the table is of, as a calibration of two would not say which counts."""
LOADS = ("uniform", "power_law_0.6", "power_law_1.2")
COLUMNS = (
    *("system", "version", "device", "op_name", "moe_dtype", "moe_kernel", "num_tokens", "hidden_size", "inter_size", "topk"),
    *("num_experts", "moe_tp_size", "moe_ep_size", "distribution", "latency"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("gpu-experts.csv"), help="for calibrate")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,8,64,256,1024,4096,16384")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("gpu: skipped, torch is not installed")
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu: skipped, torch sees no GPU here")
        return
    device = torch.device(arguments.device)
    rows = [row for name in arguments.shapes.split(",") for row in experts(name, arguments, device)]
    with arguments.table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in rows if row["moe_kernel"] == USED[device.type])
    show(rows, choices(arguments, device) + engine_choices(arguments, device), arguments, device)


def device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def experts(name: str, arguments: argparse.Namespace, device: Any) -> list[dict]:
    """A row of times a kernel, number of tokens and load, bfloat16, all experts on this device."""
    import torch

    from grace_moe.runtime.dispatch import Received
    from grace_moe.runtime.model.experts import compute_by_slot

    hidden, inter, top_k, count = SHAPES[name]
    module = experts_of(hidden, inter, count, device)
    rows = []
    for tokens in (int(text) for text in arguments.tokens.split(",")):
        for load in LOADS:
            ids = routed(load, tokens, top_k, count).to(device)
            states = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
            weights = torch.full(ids.shape, 1.0 / top_k, device=device)
            received = Received(hidden_RH=states, slots_RK=ids, weights_RK=weights)
            ways: dict[str, Callable[[], Any]] = {
                "by_slot": lambda received=received: compute_by_slot(module, received),
                "grouped_mm": lambda states=states, ids=ids, weights=weights: module(states, ids, weights.to(states.dtype)),
            }
            for way, call in ways.items():
                milliseconds, host = timed(call, arguments.rounds, device)
                rows.append(
                    {
                        "system": "",
                        "version": torch.__version__,
                        "device": device_name(device),
                        "op_name": "moe",
                        "moe_dtype": "bfloat16",
                        "moe_kernel": way,
                        "num_tokens": tokens,
                        "hidden_size": hidden,
                        "inter_size": inter,
                        "topk": top_k,
                        "num_experts": count,
                        "moe_tp_size": 1,
                        "moe_ep_size": 1,
                        "distribution": load,
                        "latency": f"{milliseconds:.6f}",
                        "shape": name,
                        "host": host,
                    }
                )
    return rows


def experts_of(hidden: int, inter: int, count: int, device: Any) -> Any:
    """Experts of a shape, of random weights."""
    import torch
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    config = OlmoeConfig(num_experts=count, hidden_size=hidden, intermediate_size=inter)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        module = OlmoeExperts(config)
    for name, meta in list(module.named_parameters()):
        weight = torch.empty(meta.shape, dtype=torch.bfloat16, device=device).normal_(std=hidden**-0.5)
        setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
    return module


def routed(load: str, tokens: int, top_k: int, count: int) -> Any:
    """`[tokens, top_k]` experts under a load as the tables have it (`cost.expert_loads`), the first draw of a skewed one."""
    import numpy as np
    import torch

    from grace_moe.cost.expert_loads import skewed_load, uniform_load

    pairs = tokens * top_k
    loads = uniform_load(pairs, count, "any") if load == "uniform" else skewed_load(tokens, top_k, count, 1, float(load.split("_")[2]))
    chosen = np.repeat(np.arange(count), np.floor(loads[0]).astype(int))
    chosen = np.resize(chosen, pairs)  # an even load's remainder goes to the first experts
    return torch.from_numpy(np.random.default_rng(0).permutation(chosen).reshape(tokens, top_k))


def choices(arguments: argparse.Namespace, device: Any) -> list[dict]:
    """Milliseconds of replica choice for a batch, by each rule, on a plan for 4x4 devices."""
    import torch

    from grace_moe import Topology, plan
    from grace_moe.runtime.dispatch.route import layer_routes
    from grace_moe.trace import synthetic_trace

    trace = synthetic_trace(tokens=2000, layers=1, experts=64, top_k=8)
    rows = []
    for method, rule in (("grace", "joint"), ("grace_paper", "tar")):
        (route,) = layer_routes(plan(trace, Topology.parse("4x4"), method), 0, seed=0, device=device).values()
        for tokens in (int(text) for text in arguments.tokens.split(",")):
            ids = torch.from_numpy(trace.topk_ids[:, 0].astype("int64"))[torch.arange(tokens) % trace.num_tokens].to(device)
            milliseconds, host = timed(lambda route=route, ids=ids: route.slots_of(route.devices_of(ids, 0), ids), arguments.rounds, device)
            rows.append({"rule": rule, "tokens": tokens, "milliseconds": milliseconds, "host": host})
    return rows


def engine_choices(arguments: argparse.Namespace, device: Any) -> list[dict]:
    """The same by the plug-in of vLLM, which is one Triton kernel on a GPU and records loads too. int32 ids, as vLLM has them."""
    import importlib.util

    import torch

    from grace_moe import Topology, plan
    from grace_moe.engines.live.given_maps import GivenMaps, LiveMap
    from grace_moe.engines.slot_map import SlotMap
    from grace_moe.engines.vllm.model_choice import ModelChoice
    from grace_moe.trace import synthetic_trace

    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return []
    trace = synthetic_trace(tokens=2000, layers=1, experts=64, top_k=8)
    placement = plan(trace, Topology.parse("4x4"), slots_per_device=5)
    slots, given = SlotMap.of(placement), GivenMaps()
    given.remember(LiveMap(slots=slots, placement=placement))
    load, record = torch.zeros(80, dtype=torch.int32, device=device), torch.tensor(True, device=device)
    rows = []
    for choice in ("joint", "near"):
        chosen = ModelChoice(placement, 0, choice, given, device)
        chosen.follow(enumerate(slots.physical_to_logical))
        for tokens in (int(text) for text in arguments.tokens.split(",")):
            ids = torch.from_numpy(trace.topk_ids[:, 0].astype("int32"))[torch.arange(tokens) % trace.num_tokens].to(device)
            chosen.begin(tokens, [0])
            milliseconds, host = timed(lambda ids=ids, chosen=chosen: chosen.slots(0, ids, 0, load, record, None), arguments.rounds, device)
            rows.append({"rule": f"{choice}, plug-in of vLLM", "tokens": tokens, "milliseconds": milliseconds, "host": host})
    return rows


def timed(call: Callable[[], Any], rounds: int, device: Any) -> tuple[float, float]:
    """Milliseconds until it is done, and until the host is free again: medians, after two calls to warm up."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    whole, host = [], []
    with torch.no_grad():
        for number in range(rounds + 2):
            finish()
            began = time.perf_counter()
            call()
            asked = time.perf_counter()
            finish()
            if number >= 2:
                whole.append((time.perf_counter() - began) * 1e3)
                host.append((asked - began) * 1e3)
    return statistics.median(whole), statistics.median(host)


def show(rows: list[dict], chosen: list[dict], arguments: argparse.Namespace, device: Any) -> None:
    import torch

    print(f"# One GPU, {date.today()}\n")
    print(f"`python benchmarks/gpu.py`: {device_name(device)}, torch {torch.__version__}, bfloat16, median of {arguments.rounds} rounds.")
    print("All experts on one device. Host: until the host is free to go on, of the whole.\n")
    print("| shape | kernel | tokens | " + " | ".join(f"{load}, ms" for load in LOADS) + " | most skewed over even | host |")
    print("|---|---|---|" + "---|" * (len(LOADS) + 2))
    cells: dict[tuple[str, str, int], dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["shape"], row["moe_kernel"], row["num_tokens"]), {})[row["distribution"]] = row
    for (shape, kernel, tokens), loads in cells.items():
        times = [float(loads[load]["latency"]) for load in LOADS]
        host = loads[LOADS[0]]["host"] / times[0]
        print(
            f"| {shape} | {kernel} | {tokens} | "
            + " | ".join(f"{ms:.3f}" for ms in times)
            + f" | {times[-1] / times[0]:.2f} | {host:.0%} |"
        )
    print("\nReplica choice of a batch, 64 experts, top-8, 4x4 devices.\n")
    print("| rule | tokens | ms | host, ms |\n|---|---|---|---|")
    for row in chosen:
        print(f"| {row['rule']} | {row['tokens']} | {row['milliseconds']:.3f} | {row['host']:.3f} |")
    print(f"{arguments.table}: for grace-moe calibrate", file=sys.stderr)


if __name__ == "__main__":
    main()
