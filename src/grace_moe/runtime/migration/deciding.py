"""The process that decides: `python -m grace_moe.runtime.migration.deciding PIPE`, started by `decider.DecidingProcess`. It ends with the
rank that started it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from grace_moe.adapt import Adapter, effects_of
from grace_moe.adapt.beside import run_beside
from grace_moe.adapt.telemetry import Follower, traffic_view
from grace_moe.placement import Placement
from grace_moe.runtime.migration.decider import Answer, Watched
from grace_moe.runtime.migration.plan import own_choices, proposal
from grace_moe.runtime.model.choice_sampler import SampledStep


def main(pipe: Connection) -> None:
    """Take messages as `DecidingProcess` sends them, and answer each."""
    serving, planned_on, options, seed, view_every, log = pipe.recv()
    adapter = Adapter(serving, planned_on, options=options, seed=seed)
    follower = None if log is None else Follower(adapter, expert_bytes=0, log=partial(_add_line, log), view_every=0)
    answer = Answer()
    proposed: Placement | None = None
    viewed = 0
    pipe.send(answer)
    while True:
        message = pipe.recv()
        if isinstance(message, Watched):
            answer, proposed = _watched(adapter, answer, proposed, message.steps)
            try:
                if follower is not None:
                    follower.step()
            except OSError as error:  # such as a disk that is full: that is no reason to stop deciding
                follower, answer = None, replace(answer, error=f"{log}: can't be written ({error}); no more decisions are added to it")
            if view_every and adapter.monitor.step // view_every > viewed:
                viewed, answer = adapter.monitor.step // view_every, replace(answer, view=traffic_view(adapter))
        elif proposed is not None:
            adapter.serving, proposed = _switched(adapter.serving, proposed, message.layers), None
        pipe.send(answer)
        answer = replace(answer, plan=b"")


def _watched(adapter: Adapter, answer: Answer, proposed: Placement | None, steps: Sequence[SampledStep]) -> tuple[Answer, Placement | None]:
    """Take in steps, and decide where it is time to and no proposal is under way."""
    for step in steps:
        phase = np.full(len(step.request_ids), step.phase, np.uint8)
        adapter.monitor.observe(step.topk_ids, step.request_ids, phase, tokens=step.tokens)
        decision = adapter.look() if proposed is None else None
        if decision is None:
            continue
        decided, reason = answer.decisions + 1, f"step {adapter.monitor.step}: {decision.reason}"
        if decision.placement is None:
            answer = replace(answer, decisions=decided, skipped=answer.skipped + 1, reason=reason)
        else:
            proposed = decision.placement
            plan = proposal(proposed, adapter.serving, reason=reason, gain=adapter.looks[-1].expected, first=decision.first)
            answer = replace(answer, decisions=decided, reason=reason, plan=plan)
    return replace(answer, steps=adapter.monitor.step, effects=effects_of(adapter.looks)), proposed


def _add_line(path: Path, line: str) -> None:
    """To a file that is opened for it alone, so that it may be moved away meanwhile, as logs are."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _switched(serving: Placement, proposed: Placement, layers: Sequence[int]) -> Placement:
    """What serves once these layers of a proposal do."""
    old, new = own_choices(serving), own_choices(proposed)
    return replace(serving, layers=tuple(new[index] if index in layers else layer for index, layer in enumerate(old)))


if __name__ == "__main__":
    run_beside(main)
