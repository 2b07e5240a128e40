"""A sample of what this rank's routers chose, all MoE layers of a token together, and of which request each token is.

A batch's choices are copied on the device that routed them; some rows of them wait there until the next rearrangement. Nothing waits for
the device in between. Those of all ranks are brought together by whoever decides, which may be a thread beside the passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.engines.live.window_adapter import TOKENS_PER_WINDOW, SeenChoices

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RankSample:
    """What one rank kept of a window."""

    ids: npt.NDArray[np.int16]
    """`[T, layers, k]`, k = 0 where the rank has run nothing yet."""
    requests: Longs
    """`[T]`"""
    tokens: int
    """Of the window."""
    move_price: float

    def gathered(self, group: Any) -> SeenChoices:
        """The samples of all ranks, rank by rank. Collective over the group, whose tensors are on the CPU."""
        count, layers, top_k = self.ids.shape
        told = _gathered(torch.tensor([count, self.tokens, top_k]), group)
        counts, tokens, widths = torch.stack(told).T.tolist()
        mine = np.zeros(max(counts), dtype=[("request", np.int64), ("ids", np.int16, (layers, max(widths)))])
        if count:
            mine["request"][:count], mine["ids"][:count] = self.requests, self.ids
        parts = _gathered(torch.from_numpy(mine.view(np.uint8)), group)
        seen = np.concatenate([part.numpy().view(mine.dtype)[:number] for part, number in zip(parts, counts, strict=True)])
        return SeenChoices(topk_ids=seen["ids"], requests=seen["request"], tokens=sum(tokens), move_price=self.move_price)


def _gathered(mine: torch.Tensor, group: Any) -> list[torch.Tensor]:
    """The tensors of all ranks, which are alike in shape."""
    found = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(found, mine, group=group)
    return found


@dataclass
class RouterSample:
    """Of one model on one rank."""

    layers: int
    rank: int
    per_batch: int
    """Most tokens of a batch that are kept."""
    move_price: float
    """See `SeenChoices`."""
    _batch: torch.Tensor | None = field(default=None, repr=False)
    """int16 `[most tokens, layers, k]` of the batch that runs, at an address that stays once the largest batch has run: CUDA graphs write
    there."""
    _kept: list[tuple[torch.Tensor, Longs]] = field(default_factory=list, repr=False)
    _tokens: int = 0
    _batches: int = 0

    def note(self, layer: int, first: int, topk_ids: torch.Tensor) -> None:
        """Experts `[T, k]` that a layer chose for the tokens from number `first` of the batch on."""
        end = first + len(topk_ids)
        if self._batch is None or end > len(self._batch):
            grown = topk_ids.new_full((end, self.layers, topk_ids.shape[1]), -1, dtype=torch.int16)
            if self._batch is not None:
                grown[: len(self._batch)] = self._batch
            self._batch = grown
        self._batch[first:end, layer] = topk_ids.to(torch.int16)

    def keep(self, tokens_of_request: Mapping[str, int]) -> None:
        """The batch has run: keep some of its tokens.

        Args:
            tokens_of_request: how many tokens of each request it had, in the batch's order.
        """
        tokens = sum(tokens_of_request.values())
        if self._batch is None or not tokens or tokens > len(self._batch):
            return
        numbers = np.array([(self.rank << 32) + zlib.crc32(name.encode()) for name in tokens_of_request], dtype=np.int64)
        requests = np.repeat(numbers, list(tokens_of_request.values()))
        rows = np.random.default_rng([self.rank, self._batches]).permutation(tokens)[: self.per_batch]
        self._kept.append((self._batch[torch.from_numpy(rows).to(self._batch.device)], requests[rows]))
        self._tokens += tokens
        self._batches += 1

    def take(self) -> RankSample:
        """What was kept since the last call, off the device."""
        top_k = 0 if self._batch is None else self._batch.shape[2]
        ids = torch.cat([part for part, _ in self._kept]).cpu() if self._kept else torch.zeros((0, self.layers, top_k), dtype=torch.int16)
        requests = np.concatenate([part for _, part in self._kept] or [np.zeros(0, np.int64)])
        taken = RankSample(ids=ids.numpy(), requests=requests, tokens=self._tokens, move_price=self.move_price)
        self._kept.clear()
        self._tokens = 0
        return taken


def router_sample(model_state: Any, model_config: Any, parallel_config: Any, rank: int) -> RouterSample:
    """For a model that vLLM's balancer has just taken in."""
    weights = model_state.model.expert_weights[0]
    expert = sum(part[0].numel() * part.element_size() for part in weights)
    copy = 2 * model_config.get_hidden_size() * model_config.dtype.itemsize  # there, and its sum back
    window = parallel_config.eplb_config.step_interval
    return RouterSample(
        layers=len(model_state.logical_to_physical_map),
        rank=rank,
        per_batch=-(-TOKENS_PER_WINDOW // (window * parallel_config.data_parallel_size)),
        move_price=expert / copy,
    )


def tokens_of_requests(runner: Any, scheduler_output: Any) -> dict[str, int]:
    """How many tokens of each request the batch had that a model runner of vLLM's has just run, in the batch's order; empty where this
    runner doesn't say it."""
    batch = getattr(runner, "input_batch", None) or getattr(getattr(runner, "execute_model_state", None), "input_batch", None)
    scheduled = scheduler_output.num_scheduled_tokens
    names = [] if batch is None else list(batch.req_ids)
    return {name: scheduled[name] for name in names} if set(names) == set(scheduled) else {}
