"""Run a plan from a program of one's own: each rank completes its own prompts, by Transformers' `generate`.

    grace-moe plan trace.safetensors --topology 1x2 -o plan.json
    torchrun --nproc-per-node 2 examples/serve_plan.py ./OLMoE-1B-7B plan.json "The experts" "Once upon a time"

To serve many users, export the plan to vLLM, SGLang or TensorRT-LLM instead (`grace-moe export --help`).
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from grace_moe import Placement
from grace_moe.runtime import leave, placed_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("placement", help="plan for as many devices as there are ranks")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--new-tokens", type=int, default=16)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    with placed_model(arguments.model, Placement.load(arguments.placement)) as loaded:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        mine = arguments.prompts[rank::ranks] or [arguments.prompts[0]]  # every rank joins every pass
        inputs = tokenizer(mine, return_tensors="pt", padding=True, return_token_type_ids=False).to(loaded.model.device)
        with torch.no_grad():
            # Experts are reached together, so all ranks make the same number of passes, whatever each has to say.
            tokens = loaded.model.generate(
                **inputs, max_new_tokens=arguments.new_tokens, min_new_tokens=arguments.new_tokens, do_sample=False
            )
        said: list[list[str]] = [[] for _ in range(ranks)]
        dist.all_gather_object(said, tokenizer.batch_decode(tokens, skip_special_tokens=True))
        if rank == 0:
            for number in range(len(arguments.prompts)):
                print(said[number % ranks][number // ranks], flush=True)
    leave(0)  # at once: threads of torch's now and then abort an orderly end


if __name__ == "__main__":
    main()
