"""What the steps of a generation notice of a migration: 2 nodes of 2 ranks over a slow link, the embedded model, experts moving to and fro.

The plan is of prose, the text is code. One generation goes undisturbed; in each of the others one migration begins after a third of the
steps: to what `decide` takes for code within its budget, then back, and so on. Tokens must be the same each time. A step counts as the
slowest rank's, and only decode steps count, which are alike; a step is of the migration from the moment when ranks begin to share the
proposal until the last layer has switched.

    python benchmarks/live.py --rate 20mbit [--rounds 6 --new 240 --batch 32]

Where there is a GPU, ranks compute on it. `--hidden 1024 --layers 8` takes an OLMoE of that size with random weights instead of the
embedded model: experts then have megabytes, as those of real models.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_moe.embedded import embedded_model, embedded_texts
from slow_link import NODES, RANKS, finish, nodes, start

if TYPE_CHECKING:
    from grace_moe.runtime.migration.adaptation import Adaptation
    from grace_moe.runtime.model.step import Step

UNDISTURBED, WATCHED, MOVING = "undisturbed", "watched", "moving"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="20mbit", help="of the link between nodes, as tc writes it")
    parser.add_argument("--rounds", type=int, default=6, help="generations with a migration")
    parser.add_argument("--new", type=int, default=240, help="tokens generated for each request")
    parser.add_argument("--batch", type=int, default=32, help="requests of each rank")
    parser.add_argument("--bytes-per-step", type=int, help="that a rank sends of experts, where that is not a tenth of what dispatch sends")
    parser.add_argument("--hidden", type=int, default=0, help="of a model with random weights; 0 = the embedded one")
    parser.add_argument("--layers", type=int, default=8, help="of such a model")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        serve(arguments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(arguments, folder)
        with nodes(arguments.rate) as (prefixes, link):
            finish([start(__file__, rank, prefixes[rank * NODES // RANKS], folder) for rank in range(RANKS)])
        show(arguments, link, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)])


def model_of(arguments: argparse.Namespace, folder: Path) -> str:
    return str(folder / "model") if arguments.hidden else str(embedded_model())


def make_model(arguments: argparse.Namespace, folder: Path) -> None:
    """64 experts, half as wide as the model. Random weights, as large as lets hidden states keep their size."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    embedded = OlmoeConfig.from_pretrained(embedded_model())
    sizes = {"hidden_size": arguments.hidden, "intermediate_size": arguments.hidden // 2, "num_hidden_layers": arguments.layers}
    heads = {"num_attention_heads": arguments.hidden // 64, "num_key_value_heads": arguments.hidden // 64}
    config = OlmoeConfig(**{**embedded.to_dict(), **sizes, **heads, "initializer_range": arguments.hidden**-0.5})
    OlmoeForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(model_of(arguments, folder))


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """The plan of prose, the trace it was made on, and what `decide` takes when code comes."""
    from grace_moe import Topology, plan
    from grace_moe.adapt import DecisionOptions, decide
    from grace_moe.runtime.dispatch.rank_groups import rank_device
    from grace_moe.runtime.job.generation import GenerationOptions
    from grace_moe.runtime.job.recording import record_trace, requests_from_text
    from grace_moe.runtime.model.description import load_tokenizer
    from grace_moe.runtime.model.loading import load_whole_model

    if arguments.hidden:
        make_model(arguments, folder)
    model, tokenizer = load_whole_model(model_of(arguments, folder)).to(rank_device()), load_tokenizer(str(embedded_model()))
    options = GenerationOptions(new_tokens=8, batch_size=48, stop_at_eos=False)
    traces = {}
    for domain in ("prose", "code"):
        requests = requests_from_text([embedded_texts()[domain]], tokenizer, tokens_per_request=64, max_requests=200)
        traces[domain], _ = record_trace(model, requests, options, name="embedded OLMoE", dataset=domain)
    placement = plan(traces["prose"], Topology.parse(f"{NODES}x{RANKS // NODES}"), redundancy=1.25)
    decision = decide(placement, traces["code"], DecisionOptions())
    if decision.placement is None:
        sys.exit(f"nothing would move: {decision.reason}")
    placement.save(folder / "prose_plan.json")
    decision.placement.save(folder / "code_plan.json")
    print(decision.reason, file=sys.stderr)


class Scripted:
    """Decides what it is told to."""

    alive = True

    def __init__(self) -> None:
        self.plan = b""
        """Proposed next."""

    def take(self, steps: object) -> None: ...

    def moved(self, layers: object) -> None: ...

    def answer(self) -> Any:
        from grace_moe.runtime.migration.decider import Answer

        plan, self.plan = self.plan, b""
        return Answer(plan=plan)

    def close(self) -> None: ...


def serve(arguments: argparse.Namespace) -> None:
    """One rank: generate the same again and again, while experts move."""
    import torch

    from grace_moe import Placement
    from grace_moe.runtime.dispatch.rank_groups import make_groups
    from grace_moe.runtime.job.generation import GenerationOptions, generate
    from grace_moe.runtime.job.ranks import joined, leave
    from grace_moe.runtime.job.recording import requests_from_text
    from grace_moe.runtime.migration.adaptation import AdaptingOptions, policy_of, started
    from grace_moe.runtime.migration.link import Link
    from grace_moe.runtime.migration.plan import proposal
    from grace_moe.runtime.model.description import load_tokenizer
    from grace_moe.runtime.model.loading import load_model

    rank, folder, patience = arguments.rank, arguments.folder, timedelta(seconds=300)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
    plans = [Placement.load(folder / name) for name in ("prose_plan.json", "code_plan.json")]
    tokenizer = load_tokenizer(str(embedded_model()))
    texts = [embedded_texts()["code"]]
    requests = requests_from_text(texts, tokenizer, tokens_per_request=64, max_requests=arguments.batch * RANKS)[rank::RANKS]
    options = GenerationOptions(new_tokens=arguments.new, batch_size=arguments.batch, stop_at_eos=False)
    with joined(rendezvous_file=f"{folder}/rendezvous", timeout=patience) as member:
        groups = make_groups(plans[0].topology, patience)
        loaded = load_model(model_of(arguments, folder), plans[0], groups, dispatch="hierarchical", dtype=torch.float32, equal_slots=True)
        clock = Clock()

        def made(before_step: Callable[[Step], None], options: GenerationOptions = options) -> list[tuple[int, ...]]:
            result = generate(loaded.model, requests, options, num_batches=1, before_step=before_step)
            clock.end_generation()
            return [completion.tokens for completion in result.completions]

        made(loaded.session.begin_step, GenerationOptions(new_tokens=4, batch_size=2, stop_at_eos=False))  # warms up
        wanted = made(lambda step: clock.begin(step, loaded.session.begin_step, None))
        scripted, policy = Scripted(), policy_of(loaded)
        decider = scripted if member.rank == 0 else None
        adapting = AdaptingOptions(policy=policy, bytes_per_step=arguments.bytes_per_step)
        adaptation = started(loaded, loaded.model.config.num_experts_per_tok, decider, Link(patience), adapting)
        for number in range(arguments.rounds):

            def begin_step(step: Step, target: Placement = plans[1 - number % 2]) -> None:
                if clock.number == arguments.new // 3:
                    scripted.plan = proposal(target, adaptation.serving, reason="the benchmark says so", gain=0.0)
                clock.begin(step, adaptation.begin_step, adaptation)

            if made(begin_step) != wanted:
                sys.exit(f"rank {rank}: round {number}: other tokens than undisturbed")
        status = adaptation.status
        facts = {"migrations": status.migrations, "rolled_back": status.rolled_back, "copies": status.copies_moved}
        facts |= {"bytes": status.bytes_moved, "steps": clock.steps}
        facts["device"] = "no GPU" if loaded.model.device.type == "cpu" else torch.cuda.get_device_name(loaded.model.device)
        (folder / f"{rank}.json").write_text(json.dumps(facts))
        adaptation.close()
    leave(0)


class Clock:
    """Notes when each step of this rank begins, and what goes on."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, float]] = []
        """What went on, and seconds, of each decode step."""
        self._begun: tuple[str, float] | None = None
        self.number = 0
        """Of the steps of this generation that have begun."""

    def begin(self, step: Step, begin_step: Callable[[Step], None], adaptation: Adaptation | None) -> None:
        """A pass begins: the one before has ended."""
        from grace_moe.trace import DECODE

        self.end()
        self.number += 1
        began = time.perf_counter()
        before = _what(adaptation)
        begin_step(step)
        kind = max(before, _what(adaptation), key=(UNDISTURBED, WATCHED, MOVING).index)
        self._begun = (kind, began) if step.phase == DECODE else None

    def end(self) -> None:
        """The step under way is over."""
        if self._begun is not None:
            self.steps.append((self._begun[0], time.perf_counter() - self._begun[1]))
        self._begun = None

    def end_generation(self) -> None:
        """So is the generation."""
        self.end()
        self.number = 0


def _what(adaptation: Adaptation | None) -> str:
    if adaptation is None:
        return UNDISTURBED
    return MOVING if adaptation.status.state == "moving" else WATCHED


def show(arguments: argparse.Namespace, link: str, ranks: list[dict[str, Any]]) -> None:
    slowest = [max(steps, key=lambda step: step[1]) for steps in zip(*(rank["steps"] for rank in ranks), strict=True)]
    print(f"# Steps while experts move, {date.today()}\n")
    model = f"an OLMoE of {arguments.layers} layers, hidden size {arguments.hidden}," if arguments.hidden else "the embedded model"
    print(f"`python benchmarks/live.py`: {model} in float32, {arguments.batch} requests a rank, {arguments.new} new tokens,")
    print(f"2x2 ranks over gloo on {os.cpu_count()} cores ({platform.machine()}), {ranks[0]['device']}, {link}.")
    first = ranks[0]
    print(f"{first['migrations']} migrations, {first['rolled_back']} rolled back, {first['copies']} copies of experts moved")
    print(f"({first['bytes'] / 2**20:.1f} MiB); tokens as undisturbed in all {arguments.rounds} generations.\n")
    print("| decode steps | number | median, ms | p90 | p99 | slowest | slowest over the median outside |")
    print("|---|---|---|---|---|---|---|")
    outside = statistics.median([seconds for kind, seconds in slowest if kind == WATCHED])
    for kind in (UNDISTURBED, WATCHED, MOVING):
        taken = sorted(seconds * 1e3 for other, seconds in slowest if other == kind)
        if not taken:
            continue
        row = [statistics.median(taken), *(taken[min(len(taken) - 1, round(share * len(taken)))] for share in (0.9, 0.99)), taken[-1]]
        figures = " | ".join(f"{value:.1f}" for value in row)
        print(f"| {kind} | {len(taken)} | {figures} | {taken[-1] / outside / 1e3:.2f} |")


if __name__ == "__main__":
    main()
