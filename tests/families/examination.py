"""One family, from its checkpoint to a run on four ranks: each step against an oracle of its own."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from grace_moe import Topology, plan
from grace_moe.runtime.job.generation import GenerationOptions, Request, generate
from grace_moe.runtime.job.job import Job, RunSpec
from grace_moe.runtime.job.on_rank import run_on_rank
from grace_moe.runtime.job.recording import record_trace
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.runtime.model.moe_layers import ExpertsOfLayer, experts_by_layer
from tests.rank_pool import RankPool

CLOSE = 1e-4
_ORACLE = "tests_families_oracle"
OPTIONS = GenerationOptions(new_tokens=3, batch_size=1, keep_logits=True, stop_at_eos=False)
_DRAW = random.Random(3)
REQUESTS = tuple(
    Request(request_id=i, prompt=tuple(_DRAW.randrange(4, 2000) for _ in range(length))) for i, length in enumerate([4, 11, 23, 9])
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was seen of one family."""

    model_class: str
    layers: int
    experts: int
    top_k: int
    recorded: bool
    """Ids equal what the router said, and outputs are unchanged to the bit."""
    tokens: bool
    """All equal to one process, by hierarchical and flat dispatch."""
    logits: float
    """The largest difference from one process."""

    @property
    def right(self) -> bool:
        """Recorded exactly and run losslessly."""
        return self.recorded and self.tokens and self.logits <= CLOSE


def examine(
    folder: Path, pool: RankPool, scratch: Path, *, dispatches: tuple[str, ...] = ("hierarchical", "flat"), oracle: Any = None
) -> Outcome:
    """Record the checkpoint on one process, plan on 2x2 with replicas, run on the pool's ranks.

    Args:
        oracle: the model on one process to compare with; None: the checkpoint's own.
    """
    model = load_whole_model(str(folder))
    own = generate(model, REQUESTS, OPTIONS)
    plain = own if oracle is None else generate(oracle, REQUESTS, OPTIONS)
    with router_choices(model) as said:
        trace, recorded = record_trace(model, REQUESTS, OPTIONS, name=folder.name, dataset="random")
    same = all(torch.equal(a.logits, b.logits) for a, b in zip(own.completions, recorded.completions, strict=True))
    placement = plan(trace, Topology.parse("2x2"), redundancy=1.25)
    path = scratch / "plan.json"
    placement.save(path)
    runs = tuple(RunSpec(name=dispatch, placement=str(path), dispatch=dispatch) for dispatch in dispatches)
    results = pool.do(
        run_on_rank, Job(model=str(folder), requests=REQUESTS, options=OPTIONS, runs=runs, warm_up=False, timeout_seconds=180)
    )[0]
    pairs = [pair for result in results for pair in zip(result.completions, plain.completions, strict=True)]
    return Outcome(
        model_class=type(model).__name__,
        layers=trace.num_layers,
        experts=trace.num_experts,
        top_k=trace.top_k,
        recorded=same and all(_equal(ids, trace.topk_ids[:, trace.layer_ids.index(layer)]) for layer, ids in said.items()),
        tokens=all(ours.tokens == theirs.tokens for ours, theirs in pairs),
        logits=max(float((ours.logits - theirs.logits).abs().max()) for ours, theirs in pairs),
    )


def _equal(said: list[torch.Tensor], recorded: np.ndarray) -> bool:
    """Whether each token's experts are those that the router said, in any order; -1 stands for none."""
    return bool(np.array_equal(np.sort(torch.cat(said).numpy(), axis=-1), np.sort(recorded, axis=-1)))


@contextmanager
def router_choices(model: Any) -> Iterator[dict[int, list[torch.Tensor]]]:
    """Per layer, the ids `[T, K]` of each pass, by other ways than the recorder's: the registry through which Transformers calls experts, or
    the output of the router where it has none."""
    layers = experts_by_layer(model)
    said: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    if not all(hasattr(experts.module, "is_concatenated") for experts in layers.values()):
        handles = [handle for layer, experts in layers.items() for handle in _hear_router(model, experts, said[layer])]
        yield said
        for handle in handles:
            handle.remove()
        return
    layer_of = {id(experts.module): layer for layer, experts in layers.items()}
    configs = [experts.module.config for experts in layers.values()]
    before = {id(config): config._experts_implementation for config in configs}

    def hear(module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if id(module) in layer_of:
            said[layer_of[id(module)]].append(ids.masked_fill((weights == 0) | (ids >= module.num_experts), -1).clone())
        inner = ALL_EXPERTS_FUNCTIONS.get_interface(before.get(id(module.config), "eager"), type(module).forward.__wrapped__)
        return inner(module, hidden, ids, weights)

    ALL_EXPERTS_FUNCTIONS.register(_ORACLE, hear)
    for config in configs:
        config._experts_implementation_internal = _ORACLE
    yield said
    for config in configs:
        config._experts_implementation_internal = before[id(config)]


def _hear_router(model: Any, experts: ExpertsOfLayer, said: list[torch.Tensor]) -> list[Any]:
    """The ids of a block, as its own code uses them: of the last call of its router in a forward pass of the block."""
    block, outputs = experts.module, []
    if experts.adapter is None:
        block = model.get_submodule(experts.parameters[0].rpartition(".experts.")[0])
    router = block.router if hasattr(block, "router") else block.gate

    def heard(_: Any, __: Any, output: Any) -> None:
        outputs.append(output)

    def finished(*_: Any) -> None:
        said.append(_ids_of(block, router, outputs[-1]))
        outputs.clear()

    return [router.register_forward_hook(heard), block.register_forward_hook(finished)]


def _ids_of(block: Any, router: Any, output: Any) -> torch.Tensor:
    """`[T, K]` the experts that a router's output stands for."""
    kind = type(router).__name__
    if kind == "Llama4Router":  # all but the chosen have a score of zero
        return (output[0] > 0).nonzero()[:, 1].reshape(len(output[0]), -1)
    if kind == "JetMoeTopKGating":  # places of (token, choice) pairs, expert by expert
        places, experts = output[0], torch.repeat_interleave(torch.arange(len(output[3])), torch.tensor(output[3]))
        return torch.empty_like(places).scatter_(0, places, experts).reshape(-1, router.top_k)
    if kind == "DbrxRouter":
        return block.route_tokens_to_experts(output)[1]
    ids = next(o for o in output if o.dtype == torch.int64)
    return ids.masked_fill(ids >= block.experts.down_proj.shape[0], -1)
