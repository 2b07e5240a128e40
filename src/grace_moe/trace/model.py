"""RoutingTrace: what a model's router chose, token by token and layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS, MAX_TOKENS
from grace_moe.trace.names import faults_of_names
from grace_moe.trace.store import read_fields, write_fields

PREFILL, DECODE = 0, 1
BLOCK = 2**20
"""Choices that are looked at together."""


@dataclass(frozen=True, kw_only=True)
class RoutingTrace:
    """The router's choices for a stretch of tokens.

    >>> import numpy as np
    >>> ids = np.array([[[0, 2]], [[2, 3]], [[1, 2]]], dtype=np.int16)  # 3 tokens, 1 layer, 2 experts each
    >>> trace = RoutingTrace(topk_ids=ids, num_experts=4, layer_ids=(0,), request_ids=np.array([7, 7, 9], dtype=np.int32))
    >>> planned_on, measured_on = trace.split_requests()
    >>> planned_on.num_tokens, measured_on.num_tokens
    (2, 1)

    Raises:
        TraceError: on construction, if shapes disagree or an id is out of range.
    """

    topk_ids: npt.NDArray[np.int16 | np.int32]
    """`[tokens, layers, k]` logical expert ids; -1 = no choice. Distinct within a token."""
    num_experts: int
    """Experts in each MoE layer."""
    layer_ids: tuple[int, ...]
    """The model's own numbers of the MoE layers; dense layers are absent."""
    model: str = ""
    """What was recorded."""
    dataset: str = ""
    """On which text."""
    request_ids: npt.NDArray[np.int32] | None = None
    """`[tokens]` the request that each token belongs to; None = each token is its own."""
    phase: npt.NDArray[np.uint8] | None = None
    """`[tokens]` 0 = prefill, 1 = decode."""
    topk_weights: npt.NDArray[np.float16] | None = None
    """`[tokens, layers, k]` routing weights."""
    token_ids: npt.NDArray[np.int32] | None = None
    """`[tokens]` what the tokens are, in the vocabulary: a front-end learns from it where a prompt should go."""
    surrogate: bool = False
    """Drawn to match an engine's counts of experts and pairs: to plan on, and not to measure on."""
    source: str = "trace"
    """Where it came from, for messages."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_names()
        self._check_distinct()
        self._check_columns()

    def _check_choices(self) -> None:
        ids = self.topk_ids
        if ids.ndim != 3 or ids.dtype not in (np.int16, np.int32):
            raise self._error("topk_ids", f"{ids.dtype} {ids.shape} is not int16 or int32 [tokens, layers, k]", "record it again")
        if len(ids) > MAX_TOKENS:
            raise self._error("topk_ids", f"{len(ids)} tokens are over the limit of {MAX_TOKENS}", "split the trace")
        if not 1 <= self.num_experts <= MAX_EXPERTS:
            raise self._error("num_experts", f"{self.num_experts} is not in 1..{MAX_EXPERTS}", "record it again")
        if ids.shape[2] < 1 or ids.shape[2] > self.num_experts:
            raise self._error("topk_ids", f"k = {ids.shape[2]} is not in 1..{self.num_experts}", "check num_experts")
        if ids.size and (ids.min() < -1 or ids.max() >= self.num_experts):
            bad = int(ids.max()) if ids.max() >= self.num_experts else int(ids.min())
            raise self._error("topk_ids", f"expert id {bad} is not in -1..{self.num_experts - 1}", "check num_experts")

    def _check_names(self) -> None:
        for fault in faults_of_names(self.num_layers, self.layer_ids, self.model, self.dataset):
            raise self._error(*fault)

    def _check_distinct(self) -> None:
        for block in self._blocks():
            ids = np.sort(self.topk_ids[block], axis=2)
            twice = ((ids[:, :, 1:] == ids[:, :, :-1]) & (ids[:, :, 1:] >= 0)).any(axis=2)
            if twice.any():
                token, layer = np.argwhere(twice)[0]
                raise self._error(
                    "topk_ids",
                    f"token {block.start + token} names an expert twice in layer {self.layer_ids[layer]}",
                    "a router chooses distinct experts: record it again",
                )

    def _check_columns(self) -> None:
        shape = self.topk_ids.shape
        columns = {"request_ids": "int32", "phase": "uint8", "token_ids": "int32", "topk_weights": "float16"}
        for name, dtype in columns.items():
            want = shape if name == "topk_weights" else shape[:1]
            array = getattr(self, name)
            if array is not None and (array.shape != want or array.dtype != dtype):
                raise self._error(name, f"{array.dtype} {array.shape} is not {dtype} {want}", "record it again")
        if self.phase is not None and self.phase.size and self.phase.max() > DECODE:
            raise self._error("phase", f"value {self.phase.max()} is not 0 (prefill) or 1 (decode)", "record it again")
        if self.token_ids is not None and self.token_ids.size and self.token_ids.min() < 0:
            raise self._error("token_ids", f"{self.token_ids.min()} is not in any vocabulary", "record it again")
        if self.topk_weights is not None and not np.isfinite(self.topk_weights).all():
            raise self._error("topk_weights", "not all are finite numbers", "record it again")

    def _blocks(self) -> Iterator[slice]:
        """Slices of tokens, each of about `BLOCK` choices: what works on them takes little memory beside the trace."""
        tokens = max(1, BLOCK // max(1, self.num_layers * self.top_k))
        return (slice(start, start + tokens) for start in range(0, self.num_tokens, tokens))

    def _error(self, field: str, problem: str, mend: str) -> TraceError:
        return TraceError(self.source, field, problem, mend)

    @property
    def num_tokens(self) -> int:
        return int(self.topk_ids.shape[0])

    @property
    def num_layers(self) -> int:
        return int(self.topk_ids.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.topk_ids.shape[2])

    @cached_property
    def requests(self) -> npt.NDArray[np.int64]:
        """`[tokens]` request ids; each token is its own request where none were recorded."""
        if self.request_ids is None:
            return np.arange(self.num_tokens, dtype=np.int64)
        return self.request_ids.astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of a SHA-256 over the choices and their requests: names the trace in a provenance."""
        sha = hashlib.sha256()
        sha.update(f"{self.num_experts}|{self.topk_ids.shape}|{list(self.layer_ids)}".encode())
        for block in self._blocks():
            sha.update(np.ascontiguousarray(self.topk_ids[block], dtype=np.int32).tobytes())
        for block in self._blocks():
            sha.update(self.requests[block].tobytes())
        return sha.hexdigest()[:16]

    def select(self, tokens: npt.NDArray[np.bool_ | np.int64]) -> RoutingTrace:
        """The same trace with these tokens only (a mask or indices)."""
        return RoutingTrace(
            topk_ids=self.topk_ids[tokens],
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
            model=self.model,
            dataset=self.dataset,
            request_ids=self.requests[tokens].astype(np.int32),
            phase=None if self.phase is None else self.phase[tokens],
            topk_weights=None if self.topk_weights is None else self.topk_weights[tokens],
            token_ids=None if self.token_ids is None else self.token_ids[tokens],
            surrogate=self.surrogate,
            source=self.source,
        )

    def of_layers(self, indices: Sequence[int]) -> RoutingTrace:
        """The same tokens in these layers only."""
        weights = None if self.topk_weights is None else self.topk_weights[:, list(indices)]
        layer_ids = tuple(self.layer_ids[index] for index in indices)
        return replace(self, topk_ids=self.topk_ids[:, list(indices)], layer_ids=layer_ids, topk_weights=weights)

    def split_requests(self, seed: int | None = None) -> tuple[RoutingTrace, RoutingTrace]:
        """Two halves by request: plan on the first, measure on the second.

        Args:
            seed: of halves at random; None = every second request. Where long and short requests take turns, those halves are not alike.

        Raises:
            TraceError: fewer than two requests.
        """
        order = np.unique(self.requests)
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        if len(order) < 2:
            raise self._error("request_ids", "one request can't be split in two halves", "give a second trace to measure on")
        second = np.isin(self.requests, order[1::2])
        return self.select(~second), self.select(second)

    @classmethod
    def load(cls, path: str | Path) -> RoutingTrace:
        """Read a `grace-moe.trace` file of tokens; `read_recording` takes those of counts too.

        Raises:
            TraceError: with file, field and mend.
        """
        found = read_fields(Path(path))
        if found.pop("counts_only"):
            problem = "it tells how often each expert fires, not what a token costs"
            raise TraceError(str(path), "counts_only", problem, "record tokens, or import an engine's record of them")
        return cls(**found)

    def save(self, path: str | Path) -> None:
        """Write the trace whole, or nothing."""
        write_fields({field.name: getattr(self, field.name) for field in fields(self)}, Path(path))
