"""What watching costs a rank of a run that adapts: its sampler's time over that of a forward pass, in one process and one thread.

python benchmarks/watching.py --tokens 512

On the CPU it is the embedded model and CPU time. With `--device cuda` it is OLMoE-1B-7B's shape in bfloat16 with random weights, and the
time until the GPU is done.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from grace_moe.embedded import embedded_model
from grace_moe.runtime.model.choice_sampler import ChoiceSampler
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.runtime.model.moe_layers import experts_by_layer
from grace_moe.runtime.model.step import Step

RANKS, BOUNDARY, SAMPLED = 4, 5, 64
"""As a run on four ranks has them: it samples 256 tokens a step over all ranks."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="Of a step, on this rank; a multiple of 64.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    tokens, device = arguments.tokens, torch.device(arguments.device)
    torch.set_num_threads(1)
    model = load_whole_model(str(embedded_model())) if device.type == "cpu" else random_olmoe(device)
    layers, top_k = experts_by_layer(model), model.config.num_experts_per_tok
    input_ids = torch.randint(2, model.config.vocab_size, (tokens // 64, 64), device=device)
    sampler = ChoiceSampler(tuple(layers), top_k, steps=BOUNDARY, most=SAMPLED, rank=0, ranks=RANKS, seed=0, device=device)
    requests = torch.arange(tokens) // 64
    step = Step(phase=0, valid=torch.ones(tokens, dtype=torch.bool), request_ids=requests, token_ids=input_ids.reshape(-1).cpu())
    chosen = torch.randint(0, model.config.num_experts, (tokens, top_k), device=device)

    def watch() -> None:
        sampler.begin_step(step)
        for layer_id in layers:
            sampler.seen(layer_id, chosen)

    seconds = cpu_seconds if device.type == "cpu" else gpu_seconds
    of_step = seconds(lambda: model(input_ids=input_ids, logits_to_keep=1), 15)
    of_watching = seconds(watch, 200) + seconds(sampler.packed, 100) / BOUNDARY
    everyone = [sampler.packed()] * RANKS
    of_first = of_watching + seconds(lambda: sampler.unpacked(everyone), 100) / BOUNDARY
    print(f"{tokens} tokens, {len(layers)} layers: a pass {of_step * 1e3:.1f} ms, watching {of_watching / of_step:.2%} of it,")
    print(f"on rank 0 {of_first / of_step:.2%}; {sampler.memory_bytes:,} bytes of memory")


def random_olmoe(device: torch.device) -> Any:
    """OLMoE-1B-7B's shape, which is that of a configuration of OLMoE where nothing is said."""
    config = OlmoeConfig(num_experts=64, num_experts_per_tok=8, num_hidden_layers=16, hidden_size=2048, intermediate_size=1024)
    with device:
        return OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16).eval()


def cpu_seconds(work: Callable[[], object], times: int) -> float:
    """Median CPU time of this thread."""
    return median_seconds(work, times, time.thread_time)


def gpu_seconds(work: Callable[[], object], times: int) -> float:
    """Median time until the GPU is done."""

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return median_seconds(work, times, now)


def median_seconds(work: Callable[[], object], times: int, now: Callable[[], float]) -> float:
    work()
    taken = []
    for _ in range(times):
        began = now()
        work()
        taken.append(now() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
