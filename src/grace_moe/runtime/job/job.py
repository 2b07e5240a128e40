"""A job: one model, some requests, one or more runs (a placement and a dispatch each)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from grace_moe.cost.transport import DISPATCHES
from grace_moe.errors import UsageError
from grace_moe.runtime.job import TIMEOUT_SECONDS
from grace_moe.runtime.job.choosing import Sampling
from grace_moe.runtime.job.generation import GenerationOptions, Request


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One way to run the job."""

    name: str
    placement: str
    """Path of the placement; its topology must have as many devices as there are ranks."""
    dispatch: str
    """One of `cost.transport.DISPATCHES`."""

    def __post_init__(self) -> None:
        if self.dispatch not in DISPATCHES:
            raise UsageError(f"--dispatch: {self.dispatch!r} is unknown; use one of {', '.join(DISPATCHES)}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ranks do together. Requests are dealt round-robin over the ranks."""

    model: str
    requests: tuple[Request, ...]
    options: GenerationOptions
    runs: tuple[RunSpec, ...]
    seed: int = 0
    """Of the replica choice."""
    dtype: str = "float32"
    """Of weights and hidden states, by torch's name."""
    timeout_seconds: float = TIMEOUT_SECONDS
    """How long a rank waits for another."""
    warm_up: bool = True
    """Make one unmeasured batch first."""
    profile: bool = False
    """Time the phases of every MoE layer; not for vanilla dispatch, whose phases are Transformers' own."""
    adapt: str = ""
    """Path of the trace that the placement was planned on, where experts may move while it runs; not of vanilla dispatch."""
    metrics_port: int | None = None
    """Port of rank 0's machine that serves metrics of adaptation; 0 = a free one; None = no metrics."""
    adapt_log: str = ""
    """Path on rank 0's machine of the log of adaptation; empty = none."""
    keep_routing: bool = False
    """Keep what the router chose; not of vanilla dispatch, either."""

    def to_json(self) -> bytes:
        """The job for the ranks of this machine."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """What `to_json` made."""
        value = json.loads(data)
        options = value.pop("options")
        sampling, stop_strings = Sampling(**options.pop("sampling")), tuple(options.pop("stop_strings"))
        return cls(
            requests=tuple(Request(request_id=r["request_id"], prompt=tuple(r["prompt"])) for r in value.pop("requests")),
            options=GenerationOptions(**options, sampling=sampling, stop_strings=stop_strings),
            runs=tuple(RunSpec(**r) for r in value.pop("runs")),
            **value,
        )
