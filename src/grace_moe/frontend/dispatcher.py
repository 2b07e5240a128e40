"""Which rank takes each request, and what was counted: what the proxy knows, without any network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.choice import RequestPlacer
from grace_moe.frontend.prompt_costs import PromptCosts
from grace_moe.frontend.prompts import PromptReader

RANK_HEADER = b"x-data-parallel-rank"
"""By which vLLM, and SGLang's OpenAI server, are told the rank."""
RANK_FIELD = "routed_dp_rank"
"""Of the body, by which SGLang's own `/generate` is."""
PLACED = {
    "vllm": ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/inference/v1/generate"),
    "sglang": ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate"),
}
"""Engine -> paths whose requests generate tokens. All others are handed on as they are."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A request with its rank."""

    rank: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Dispatcher:
    """Gives requests their ranks and counts them.

    Args:
        engine: one of `PLACED`.
        costs: None = every request goes to the rank that is least ahead.
    """

    def __init__(self, engine: str, placer: RequestPlacer, reader: PromptReader, costs: PromptCosts | None) -> None:
        self.engine, self.placer, self.reader, self.costs = engine, placer, reader, costs
        ranks = len(placer.node_of_rank)
        self.requests, self.in_flight, self.tokens = [0] * ranks, [0] * ranks, [0] * ranks
        self.named_by_client = self.prompt_unknown = self.not_placed = self.upstream_away = self.cut_off = 0

    def places(self, method: str, path: str) -> bool:
        """Whether requests of this kind get a rank."""
        return method == "POST" and path in PLACED[self.engine]

    def place(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> Placed | None:
        """The request with its rank. None where the body is no JSON object: the engine says what is wrong with it.

        A request that names a rank of its own keeps it, and is counted there.
        """
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict):
            return None
        ids, size = self.reader.tokens(fields)
        ids, size = self.reader.tokens(fields)
        rank = self._named(headers, fields)
        if rank is not None:
            self.named_by_client += 1
            self.placer.charge(rank, size)
        else:
            rank = self.placer.place(self._costs_of(ids), size)
            headers = [*headers, (RANK_HEADER, str(rank).encode())]
            if path == "/generate":
                body = json.dumps({**fields, RANK_FIELD: rank}).encode()
        self.requests[rank] += 1
        self.in_flight[rank] += 1
        self.tokens[rank] += size
        return Placed(rank=rank, headers=headers, body=body)

    def done(self, rank: int) -> None:
        """A request has ended, however."""
        self.in_flight[rank] -= 1

    def status(self) -> dict[str, Any]:
        """What `/grace/status` shows."""
        return {
            "engine": self.engine,
            "node_of_rank": self.placer.node_of_rank.tolist(),
            "requests": self.requests,
            "in_flight": self.in_flight,
            "prompt_tokens": self.tokens,
            "lead_tokens": [round(float(lead), 1) for lead in self.placer.lead],
            "rank_named_by_client": self.named_by_client,
            "prompt_unknown": self.prompt_unknown,
            "not_placed": self.not_placed,
            "upstream_away": self.upstream_away,
            "cut_off": self.cut_off,
        }

    def _costs_of(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """`[N]` of a prompt; nothing anywhere where it is unknown."""
        costs = np.zeros(int(self.placer.node_of_rank.max()) + 1) if self.costs is None else self.costs.of(ids)
        self.prompt_unknown += not costs.any()
        return costs

    def _named(self, headers: list[tuple[bytes, bytes]], fields: dict[str, Any]) -> int | None:
        """The rank that the client itself asks for, where there is such a rank; one that there is not is the engine's to refuse."""
        named = next((value.decode("latin-1") for name, value in headers if name.lower() == RANK_HEADER), None)
        value = fields.get(RANK_FIELD) if named is None and self.engine == "sglang" else named
        if isinstance(value, str) and value.isdecimal() and len(value) < 9:
            value = int(value)
        return value if type(value) is int and 0 <= value < len(self.requests) else None
