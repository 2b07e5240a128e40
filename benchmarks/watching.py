"""What watching costs a rank of a run that adapts: its sampler's CPU time over that of a forward pass, in one process and one thread.

python benchmarks/watching.py --tokens 512
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

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
    tokens = parser.parse_args().tokens
    torch.set_num_threads(1)
    model = load_whole_model(str(embedded_model()))
    layers, top_k = experts_by_layer(model), model.config.num_experts_per_tok
    input_ids = torch.randint(2, model.config.vocab_size, (tokens // 64, 64))
    sampler = ChoiceSampler(tuple(layers), top_k, steps=BOUNDARY, most=SAMPLED, rank=0, ranks=RANKS, seed=0, device=torch.device("cpu"))
    requests = torch.arange(tokens) // 64
    step = Step(phase=0, valid=torch.ones(tokens, dtype=torch.bool), request_ids=requests, token_ids=input_ids.reshape(-1))
    chosen = torch.randint(0, model.config.num_experts, (tokens, top_k))

    def watch() -> None:
        sampler.begin_step(step)
        for layer_id in layers:
            sampler.seen(layer_id, chosen)

    of_step = cpu_seconds(lambda: model(input_ids=input_ids, logits_to_keep=1), 15)
    of_watching = cpu_seconds(watch, 200) + cpu_seconds(sampler.packed, 100) / BOUNDARY
    everyone = [sampler.packed()] * RANKS
    of_first = of_watching + cpu_seconds(lambda: sampler.unpacked(everyone), 100) / BOUNDARY
    print(f"{tokens} tokens, {len(layers)} layers: a pass {of_step * 1e3:.1f} ms, watching {of_watching / of_step:.2%} of it,")
    print(f"on rank 0 {of_first / of_step:.2%}; {sampler.memory_bytes:,} bytes of memory")


def cpu_seconds(work: Callable[[], object], times: int) -> float:
    """Median CPU time of this thread."""
    work()
    taken = []
    for _ in range(times):
        began = time.thread_time()
        work()
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
