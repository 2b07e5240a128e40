"""Train a Mixture-of-Experts model with its experts placed by a plan: AdamW, accumulation, clipping, activation checkpointing.

grace-moe plan trace.safetensors --topology 1x2 -o plan.json
torchrun --nproc-per-node 2 examples/train.py ./OLMoE-1B-7B plan.json wiki.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from grace_moe import Placement
from grace_moe.runtime import clip_gradients, finish_expert_gradients, leave, placed_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("placement", help="plan for as many devices as there are ranks")
    parser.add_argument("text", type=Path, help="to learn")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a rank in one step")
    parser.add_argument("--batch", type=int, default=4, help="samples in one batch of a rank")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision: dense layers compute in bfloat16, weights stay float32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with placed_model(arguments.model, Placement.load(arguments.placement)) as loaded:
        loaded.model.train()
        loaded.model.activation_checkpointing_enable()
        optimiser = torch.optim.AdamW(loaded.model.parameters(), lr=arguments.rate)
        batches = batches_of_rank(arguments).to(loaded.model.device)
        for step in range(arguments.steps):
            optimiser.zero_grad()
            mean = torch.zeros((), device=loaded.model.device)
            for number in range(arguments.accumulate):
                ids = batches[(step * arguments.accumulate + number) % len(batches)]
                with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=arguments.bfloat16):
                    loss = loaded.model(input_ids=ids, labels=ids, use_cache=False).loss / arguments.accumulate
                loss.backward()
                mean += loss.detach()
            finish_expert_gradients(loaded)  # once a step, after the last backward pass
            norm = clip_gradients(loaded, arguments.max_norm)
            optimiser.step()
            dist.all_reduce(mean)
            if dist.get_rank() == 0:
                print(f"step {step}: loss {float(mean) / dist.get_world_size():.3f}, norm of the gradient {norm:.2f}", flush=True)
    leave(0)  # at once: threads of torch's now and then abort an orderly end


def batches_of_rank(arguments: argparse.Namespace) -> torch.Tensor:
    """`[batches, batch, length]` token ids: every rank has samples of its own."""
    ids = AutoTokenizer.from_pretrained(arguments.model).encode(arguments.text.read_text())
    a_batch = arguments.batch * arguments.length
    count = len(ids) // (a_batch * dist.get_world_size())
    if count == 0:
        raise SystemExit(f"{arguments.text}: {len(ids)} tokens are not a batch for each rank; give more text, or a smaller --batch")
    whole = torch.tensor(ids[: count * a_batch * dist.get_world_size()])
    return whole.view(count, dist.get_world_size(), arguments.batch, arguments.length)[:, dist.get_rank()]


if __name__ == "__main__":
    main()
