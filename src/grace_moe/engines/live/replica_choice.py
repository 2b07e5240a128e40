"""Our replica choice as an engine's router makes it: slots for the experts of a rank's own tokens, all k of a token at once.

This is the reference, on arrays or tensors alike: SGLang's plug-in runs it, and vLLM's where there is no GPU. `vllm.choice_kernel` gives
the same slots. Both are the choice of docs/method.md#online-phase, near or joint, by the same draws, so that a replay predicts them. A
token's number is how many the rank has routed before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import ChoiceTable, choice_table
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Topology

SEED = 0
"""Of the draws."""
POLICIES = {"near": "tar", "joint": "joint"}
"""A value of `GRACE_MOE_CHOICE`, and the replica choice of a placement that it is."""


@dataclass(frozen=True, kw_only=True)
class RankChoice:
    """One layer's replica choice on one rank. T tokens, K top-k, E experts, D ranks."""

    layer_id: int
    rank: int
    prefill: ChoiceTable
    decode: ChoiceTable
    """The same one where the placement has no weights of its own for decode."""
    slot_of_ED: Any
    """int64: first slot of each expert on each rank, -1 = not there."""

    def convert(self, to: Callable[[Any], Any]) -> RankChoice:
        """The same choice with every array passed through `to`."""
        prefill = self.prefill.convert(to)
        decode = prefill if self.decode is self.prefill else self.decode.convert(to)
        return replace(self, prefill=prefill, decode=decode, slot_of_ED=to(self.slot_of_ED))

    def slots(self, topk_ids_TK: Any, tokens_T: Any, *, decode: bool) -> Any:
        """`[T, K]` slot that computes each pair, -1 where the id is no expert's.

        Args:
            topk_ids_TK, tokens_T: int64 experts, and the tokens' numbers on this rank.
            decode: whether this is a batch of decode steps alone.
        """
        none = (topk_ids_TK < 0) | (topk_ids_TK >= len(self.slot_of_ED))
        ids = topk_ids_TK * ~none - 1 * none
        table = self.decode if decode else self.prefill
        devices = table.choose(self.layer_id, ids, tokens_T * 0 + self.rank, tokens_T, seed=SEED)
        return self.slot_of_ED[ids * ~none, devices * ~none] * ~none - 1 * none


def rank_choice(layer: LayerPlacement, row: npt.NDArray[np.integer[Any]], topology: Topology, rank: int, choice: str) -> RankChoice:
    """The choice of one rank in one layer.

    Args:
        row: `[slots]` expert of each slot, rank-major, as the layer says.
        choice: a key of `POLICIES`.
    """
    layer = replace(layer, replica_choice=POLICIES[choice])
    prefill = choice_table(layer, topology, POLICIES[choice])
    slot_of = np.full((len(layer.devices_of_expert), topology.num_devices), -1, dtype=np.int64)
    slots = np.arange(len(row))[::-1]  # the first slot of a rank overrules the others
    slot_of[row[slots], slots // (len(row) // topology.num_devices)] = slots
    return RankChoice(
        layer_id=layer.layer_id,
        rank=rank,
        prefill=prefill,
        decode=choice_table(layer.in_decode(), topology, POLICIES[choice]) if layer.decode_weights else prefill,
        slot_of_ED=slot_of,
    )
