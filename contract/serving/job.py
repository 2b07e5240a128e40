"""One start of vLLM with its requests, and what came of it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Job:
    """vLLM is started on `ranks` processes, serves the prompts, is looked at, and ends."""

    model: str
    prompts: tuple[tuple[int, ...], ...]
    """Token ids. Prompt i goes to rank i % ranks; a rank serves its own at once."""
    new_tokens: int = 16
    ranks: int = 4
    """One process = no expert parallelism; several = data parallelism with experts spread over all, and EPLB."""
    environment: dict[str, str] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    """Arguments of `vllm.LLM`, over `serving.rank.ENGINE`."""
    eplb: dict[str, Any] = field(default_factory=dict)
    """Of `eplb_config`, over `serving.rank.EPLB`; `num_redundant_experts` and `step_interval` are the usual ones."""
    probes: tuple[str, ...] = ()
    """Modules that look at each rank: `install()` is called before vLLM starts (its plug-ins are in), `started(worker)`, if there is one,
    before the first request, and `report(worker) -> dict` after the last token. The dictionaries are joined into `Outcome.ranks`."""
    timeout: int = 400
    """Seconds until all ranks are killed."""

    def key(self):
        """Text that two jobs share only if they are alike."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a job."""

    tokens: list[list[int]]
    """New tokens of each prompt."""
    ranks: list[dict[str, Any]]
    """What the probes of each rank report; `serving.watch` is always there."""
    logs: list[str]
    """Standard output and error of each rank."""

    def map(self):
        """`[layers, slots]` expert of each slot at the end; alike on all ranks."""
        maps = [np.array(rank["map"]) for rank in self.ranks]
        assert all((found == maps[0]).all() for found in maps), "ranks have different maps"
        return maps[0]

    def moved(self):
        """Slots that each rearrangement gave another expert, in order."""
        found = [rank["moved"] for rank in self.ranks]
        assert all(moved == found[0] for moved in found), "ranks moved different slots"
        return found[0]

    def digests(self):
        """`[layers][slots]` digest of the weights in each slot."""
        return [[digest for rank in self.ranks for digest in rank["digests"][layer]] for layer in range(len(self.map()))]

    def said(self, text):
        """Whether each rank's log has the text."""
        return [text in log for log in self.logs]
