"""Expert compute of one rank: ours beside every other way available here, at the shapes of three models, from decode to prefill.

Rows are what a rank of four receives (top-k of all experts, popularity skewed as in the recorded traces, rows with a slot here only).
All ways take turns in one run, one thread.

    python benchmarks/experts.py --model olmoe --dtype float32 --rows 4,16,64,256,1024,4096
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

MODELS = {
    "olmoe": {"name": "OLMoE", "hidden": 2048, "intermediate": 1024, "experts": 64, "slots": 20, "top_k": 8, "skew": 0.57},
    "gpt-oss": {"name": "gpt-oss-20b", "hidden": 2880, "intermediate": 2880, "experts": 32, "slots": 16, "top_k": 4, "skew": 1.17},
    "deepseek": {"name": "DeepSeek-V2-Lite", "hidden": 2048, "intermediate": 1408, "experts": 64, "slots": 20, "top_k": 6, "skew": 0.38},
}
"""`skew`: standard deviation of the logarithm of an expert's load, as in traces of these models."""
OURS = "by slot (ours)"
BATCHED_PAIRS = 16
"""batched_mm copies a whole weight per pair: beyond this it is out of memory's and the clock's reach, and far from the best."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="olmoe")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", default="4,16,64,256,1024,4096")
    parser.add_argument("--seconds", type=float, default=12, help="for each number of rows, after a warm-up; at least two rounds")
    parser.add_argument("--json", type=Path, help="append the results to a file, one line each")
    parser.add_argument("--show", type=Path, help="only print the page of such a file")
    arguments = parser.parse_args()
    if arguments.show:
        show([json.loads(line) for line in arguments.show.read_text().splitlines()])
        return
    results = measure(arguments)
    if arguments.json:
        with arguments.json.open("a") as file:
            file.writelines(json.dumps(r) + "\n" for r in results)
    show(results)


def measure(arguments: argparse.Namespace) -> list[dict]:
    import torch

    from grace_moe.runtime.dispatch import Received

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, dtype = MODELS[arguments.model], getattr(torch, arguments.dtype)
    slots, experts, generator = model["slots"], model["experts"], torch.Generator().manual_seed(1)
    module = experts_of(arguments.model, dtype)
    popularity = torch.randn(experts, generator=generator)
    popularity = (popularity - popularity.mean()) / popularity.std() * model["skew"]
    local = torch.full((experts,), -1)
    local[torch.randperm(experts, generator=generator)[:slots]] = torch.arange(slots)
    results = []
    for rows in (int(n) for n in arguments.rows.split(",")):
        noise = torch.rand(8 * rows + 64, experts, generator=generator)
        ids = local[(popularity - torch.log(-torch.log(noise))).topk(model["top_k"]).indices]
        ids = ids[(ids >= 0).any(dim=1)][:rows]
        hidden = torch.randn(rows, model["hidden"], generator=generator).to(dtype)
        received = Received(hidden_RH=hidden, slots_RK=ids, weights_RK=torch.rand(ids.shape, generator=generator))
        ways = ways_of(module, received)
        seconds: dict[str, list[float]] = {}
        with torch.no_grad():
            wanted, failed = None, []
            for name, way in ways.items():  # warms up, and compares
                try:
                    sums = way().float()
                except Exception as error:  # an implementation that does not run here is reported, not hidden
                    failed.append(name)
                    print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
                    continue
                wanted = sums if wanted is None else wanted
                torch.testing.assert_close(sums, wanted, atol=1e-3 if dtype == torch.float32 else 0.1, rtol=0.02)
            began, rounds = time.perf_counter(), 0
            while rounds < 2 or (time.perf_counter() - began < arguments.seconds and rounds < 15):
                names = [name for name in ways if name not in failed]
                turn = rounds % len(names)
                for name in names[turn:] + names[:turn]:  # another one begins each round
                    start = time.perf_counter()
                    ways[name]()
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                rounds += 1
        pairs = int((ids >= 0).sum())
        active = len(ids[ids >= 0].unique())
        facts = {"model": arguments.model, "dtype": arguments.dtype, "rows": rows, "pairs": pairs, "active": active}
        results.append(facts | {"seconds": seconds})
    return results


def experts_of(name: str, dtype):
    """The architecture's own experts module with the slots of one rank, random weights."""
    import torch
    from transformers import DeepseekV2Config, GptOssConfig, OlmoeConfig
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    size = MODELS[name]
    shape = {"hidden_size": size["hidden"]}
    if name == "olmoe":
        kind, config = OlmoeExperts, OlmoeConfig(num_experts=size["slots"], intermediate_size=size["intermediate"], **shape)
    elif name == "gpt-oss":
        kind, config = GptOssExperts, GptOssConfig(num_local_experts=size["slots"], intermediate_size=size["intermediate"], **shape)
    else:
        kind = DeepseekV2Experts
        config = DeepseekV2Config(n_routed_experts=size["slots"], moe_intermediate_size=size["intermediate"], **shape)
    with torch.device("meta"):
        module = kind(config)
    for key, meta in list(module.named_parameters()):
        weight = torch.empty(meta.shape, dtype=dtype).normal_(std=size["hidden"] ** -0.5)
        setattr(module, key, torch.nn.Parameter(weight, requires_grad=False))
    return module


def ways_of(module, received) -> dict[str, Callable]:
    """Each way to `[R, H]` sums."""
    import torch
    from torch.nn import functional

    from grace_moe.runtime.dispatch.rows import add_rows
    from grace_moe.runtime.model.experts import compute_by_slot

    hidden, slots, weights = received.hidden_RH, received.slots_RK, received.weights_RK
    few = int((slots >= 0).sum()) <= BATCHED_PAIRS

    def pairs(implementation: str) -> Callable:
        """A row per pair, the way this runtime took before."""

        def way():
            module.config._experts_implementation = implementation
            row, k = (slots >= 0).nonzero(as_tuple=True)
            outputs = module(hidden[row], slots[row, k][:, None], weights[row, k][:, None].to(hidden.dtype))
            return add_rows(outputs, row, len(hidden))

        return way

    def whole(implementation: str) -> Callable:
        """Transformers' own call, on rows with absent choices marked as it marks them."""

        def way():
            module.config._experts_implementation, module._is_expert_parallel = implementation, True
            try:
                absent = slots < 0
                return module(hidden, slots.masked_fill(absent, module.num_experts), weights.masked_fill(absent, 0.0).to(hidden.dtype))
            finally:
                module._is_expert_parallel = False

        return way

    def linear(name: str, slot: int, x):
        weight = getattr(module, name)[slot]
        bias = getattr(module, f"{name}_bias")[slot] if module.has_bias else None
        return functional.linear(x, weight.T if module.is_transposed else weight, bias)

    def one_expert(slot: int, x):
        return linear("down_proj", slot, module._apply_gate(linear("gate_up_proj", slot, x)))

    def loop_of(expert: Callable) -> Callable:
        """A loop over experts, rows sorted by slot and contiguous, out-of-place products."""

        def way():
            row, k = (slots >= 0).nonzero(as_tuple=True)
            order = torch.argsort(slots[row, k], stable=True)
            row, k = row[order], k[order]
            x, mix, total = hidden[row], weights[row, k][:, None], torch.zeros(hidden.shape)
            outputs, begin = [], 0
            for slot, count in enumerate(torch.bincount(slots[row, k]).tolist()):
                if count:
                    outputs.append(expert(slot, x[begin : begin + count]))
                    begin += count
            return total.index_add_(0, row, torch.cat(outputs).float() * mix).to(hidden.dtype)

        return way

    def compiled_expert() -> Callable:
        import torch._dynamo

        torch._dynamo.config.cache_size_limit = 64

        @torch.compile(dynamic=True)
        def expert(x, up, down, up_bias, down_bias):
            inner = module._apply_gate(functional.linear(x, up, up_bias))
            return functional.linear(inner, down, down_bias)

        def turned(weight):
            return weight.T if module.is_transposed else weight

        def call(slot: int, x):
            biases = [getattr(module, f"{n}_bias")[slot] if module.has_bias else None for n in ("gate_up_proj", "down_proj")]
            return expert(x, turned(module.gate_up_proj[slot]), turned(module.down_proj[slot]), *biases)

        return call

    if not hasattr(module, "_compiled"):
        module._compiled = compiled_expert()
    ways = {OURS: lambda: compute_by_slot(module, received)}
    ways["pairs, grouped_mm (before)"] = pairs("grouped_mm")
    if few:
        ways["pairs, batched_mm"] = pairs("batched_mm")
    ways |= {"pairs, eager": pairs("eager"), "whole, grouped_mm": whole("grouped_mm")}
    if not module.has_bias:  # gpt-oss's own eager loop has no word for a choice that is elsewhere
        ways["whole, eager"] = whole("eager")
    return ways | {"loop, sorted": loop_of(one_expert), "loop, compiled": loop_of(module._compiled)}


def show(results: list[dict]) -> None:
    print(f"# Expert compute of one rank, {date.today()}\n")
    print(f"{platform.machine()}, {os.cpu_count()} cores, one thread. Milliseconds, median (least to most); all ways in turn in one run.")
    for model, size in MODELS.items():
        for dtype in ("float32", "bfloat16"):
            mine = [r for r in results if (r["model"], r["dtype"]) == (model, dtype)]
            if not mine:
                continue
            print(f"\n## {size['name']}, {dtype}\n")
            print(f"Hidden {size['hidden']}, intermediate {size['intermediate']}, {size['slots']} slots, ", end="")
            print(f"top-{size['top_k']} of {size['experts']} experts.\n")
            names = list(dict.fromkeys(name for r in mine for name in r["seconds"]))
            print("| way | " + " | ".join(f"{r['rows']} rows, {r['pairs']} pairs, {r['active']} active" for r in mine) + " |")
            print("|---" * (len(mine) + 1) + "|")
            for name in names:
                print(f"| {name} | " + " | ".join(cell(r["seconds"].get(name)) for r in mine) + " |")
            medians = [{name: statistics.median(s) for name, s in r["seconds"].items()} for r in mine]
            others = [min(t for name, t in m.items() if name != OURS) for m in medians]
            print("| **ours / best other** | " + " | ".join(f"{m[OURS] / o:.2f}" for m, o in zip(medians, others, strict=True)) + " |")


def cell(seconds: list[float] | None) -> str:
    if not seconds:
        return "–"
    median, least, most = (1e3 * f(seconds) for f in (statistics.median, min, max))
    digits = 1 if median < 100 else 0
    return f"{median:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


if __name__ == "__main__":
    main()
