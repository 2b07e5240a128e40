"""Signs that a recording is not what it seems: rows of a warm-up, and expert ids that a strided view mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.trace import RoutingTrace

Ids = npt.NDArray[np.integer[Any]]

BY_CHANCE = 0.01
"""What looks odd is held for chance where it is as likely as this, were experts chosen evenly."""
FEWEST_ALIKE = 4
"""Identical first rows that are worth a word."""
MOST_TOKENS = 8_192
"""Tokens that are looked at for partitions."""
FEWEST_PARTITIONS = 8
WRONG_STRIDE = (
    "every {rows} name each of the {experts} experts exactly once, in all layers (a load of exactly 1.0x): no router does. The ids were "
    "read with the wrong stride (of a view of all experts in their order), and say nothing of the model: record again"
)


def signs(trace: RoutingTrace) -> tuple[str, ...]:
    """What is odd about a trace's choices, a note each."""
    return (*_warm_up(trace), *_partitions(trace))


def even_counts(counts: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """A note where `[layers, experts]` counts are more even than any router's: of a strided view, every expert is named as often."""
    mean = counts.mean(axis=1)
    if counts.shape[1] < 2 or mean.min() < FEWEST_PARTITIONS or not (counts.var(axis=1) < BY_CHANCE * mean).all():
        return ()
    return (
        "every expert of every layer was counted as often as the others, exactly 1.0x the mean: routers are not that even. The ids may "
        "have been read with the wrong stride (of a view of all experts in their order); check how they were recorded",
    )


def _warm_up(trace: RoutingTrace) -> tuple[str, ...]:
    """Identical first rows, as an engine's profile run makes of its dummy tokens."""
    ids = trace.topk_ids
    alike = (ids == ids[:1]).all(axis=(1, 2))
    first = len(ids) if alike.all() else int(np.argmin(alike))
    chance = -(first - 1) * ids.shape[1] * log(max(trace.num_experts, 2))
    if first < FEWEST_ALIKE or chance > log(BY_CHANCE):
        return ()
    return (
        f"the first {first:,} tokens chose the same experts in every layer, as an engine's warm-up makes them: "
        f"--skip-tokens {first} leaves them out",
    )


def _partitions(trace: RoutingTrace) -> tuple[str, ...]:
    """Every E / k rows of a layer that name each of the E experts once: the order of all experts, read as if it were the first k."""
    experts, k = trace.num_experts, trace.top_k
    rows = experts // k
    if experts % k or rows < 2:
        return ()
    of_layer = [request[:, layer].ravel() for request in _requests(trace) for layer in range(trace.num_layers)]
    return (WRONG_STRIDE.format(rows=f"{rows} tokens", experts=experts),) if is_partitioned(of_layer, experts) else ()


def is_partitioned(choices: Sequence[Ids], experts: int) -> bool:
    """Whether choices of one layer after the other, in whole blocks of `experts`, name every expert once in each.

    Args:
        choices: of a layer in a batch or request, `[choices]` each; those with a -1 in a block don't count.
    """
    blocks = [ids[: len(ids) // experts * experts].reshape(-1, experts) for ids in choices if len(ids) >= experts]
    if not blocks:
        return False
    all_blocks = np.sort(np.concatenate(blocks), axis=1)
    whole = all_blocks[all_blocks[:, 0] >= 0]
    return len(whole) >= FEWEST_PARTITIONS and bool((whole == np.arange(experts)).all())


def _requests(trace: RoutingTrace) -> list[Ids]:
    """The first tokens' choices, by request: `[tokens, layers, k]` each."""
    ids = trace.topk_ids[:MOST_TOKENS]
    if trace.request_ids is None:
        return [ids]
    request = trace.request_ids[:MOST_TOKENS]
    order = np.argsort(request, kind="stable")
    return np.split(ids[order], np.flatnonzero(np.diff(request[order])) + 1)
