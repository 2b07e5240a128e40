"""Some of what the router of one rank chose in the last few steps: what ranks send to where it is watched. Bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from grace_moe.runtime.model.step import Step


@dataclass(frozen=True, kw_only=True)
class SampledStep:
    """Tokens of one step, of one rank or of several."""

    topk_ids: npt.NDArray[np.int16]
    """`[tokens, layers, k]`, -1 = none."""
    request_ids: npt.NDArray[np.int64]
    """`[tokens]`, another for each request of each rank."""
    phase: int
    tokens: int
    """Of the whole step, sampled or not."""


class ChoiceSampler:
    """Samples up to `most` tokens of each step, in a buffer of `steps` steps: `steps * most * (layers * k * 2 + 8)` bytes. During
    a pass it holds what the router chose in it.

    The same steps, rank and seed give the same sample; ranks draw apart.
    """

    def __init__(
        self, layer_ids: Sequence[int], top_k: int, *, steps: int, most: int, rank: int, ranks: int, seed: int, device: torch.device
    ) -> None:
        self._layer_ids = tuple(layer_ids)
        self._rank, self._ranks, self._most = rank, ranks, most
        self._random = np.random.default_rng([seed, rank])
        self._ids = torch.full((steps, most, len(layer_ids), top_k), -1, dtype=torch.int16, device=device)
        self._requests = np.zeros((steps, most), np.int64)
        self._notes = np.zeros((steps, 3), np.int64)
        """Sampled tokens, all tokens and phase of each step."""
        self._rows = torch.zeros(0, dtype=torch.int64, device=device)
        self._steps = 0
        self._seen: dict[int, torch.Tensor] = {}
        """Of the pass under way, the choices of each layer."""

    @property
    def memory_bytes(self) -> int:
        """Of all that is kept; it does not grow."""
        return self._ids.nbytes + self._requests.nbytes + self._notes.nbytes

    def begin_step(self, step: Step) -> None:
        """A forward pass comes: draw the rows that are sampled."""
        self._keep()
        index = self._steps % len(self._notes)
        self._steps += 1
        real = step.valid.nonzero()[:, 0]
        drawn = real
        if len(real) > self._most:
            drawn = real[torch.from_numpy(np.sort(self._random.choice(len(real), self._most, replace=False)))]
        self._requests[index, : len(drawn)] = step.request_ids[drawn].numpy() * self._ranks + self._rank
        self._notes[index] = len(drawn), len(real), step.phase
        self._rows = drawn.to(self._ids.device, non_blocking=True)

    def seen(self, layer_id: int, topk_ids_TK: torch.Tensor) -> None:
        """One layer's choices in this pass."""
        self._seen[layer_id] = topk_ids_TK

    def _keep(self) -> None:
        """Put the sampled rows of a pass into the buffer, all layers at once: a GPU takes as long for one layer."""
        if self._seen:
            chosen = torch.stack([self._seen[layer_id] for layer_id in self._layer_ids], dim=1)
            self._ids[(self._steps - 1) % len(self._notes), : len(self._rows)] = chosen.index_select(0, self._rows)
            self._seen = {}

    def packed(self) -> torch.Tensor:
        """The buffer as bytes, alike in length on every rank, on the CPU."""
        self._keep()
        parts = (self._notes, self._requests, self._ids.cpu().numpy())
        return torch.from_numpy(np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts]))

    def unpacked(self, of_ranks: Sequence[torch.Tensor]) -> list[SampledStep]:
        """The steps of all ranks together, from what each packed."""
        sizes = np.cumsum([self._notes.nbytes, self._requests.nbytes])
        notes, requests, ids = zip(*(np.split(packed.numpy(), sizes) for packed in of_ranks), strict=True)
        notes_RS = np.stack([part.view(np.int64).reshape(self._notes.shape) for part in notes])
        requests_RS = np.stack([part.view(np.int64).reshape(self._requests.shape) for part in requests])
        ids_RS = np.stack([part.view(np.int16).reshape(self._ids.shape) for part in ids])
        return [
            SampledStep(
                topk_ids=np.concatenate([ids_RS[rank, step, : notes_RS[rank, step, 0]] for rank in range(self._ranks)]),
                request_ids=np.concatenate([requests_RS[rank, step, : notes_RS[rank, step, 0]] for rank in range(self._ranks)]),
                phase=int(notes_RS[0, step, 2]),
                tokens=int(notes_RS[:, step, 1].sum()),
            )
            for step in range(len(self._notes))
            if notes_RS[:, step, 1].any()
        ]
