"""A stream of requests turns from prose to code, and the placement follows: what it costs step by step, as a picture.

    grace-moe record MODEL --text prose.txt -o prose.safetensors
    grace-moe record MODEL --text code.txt -o code.safetensors
    python examples/follow_traffic.py prose.safetensors code.safetensors

Plans on every second request of the prose and leaves `plan.json` and the trace it was made on, `planned_on.safetensors`. The other requests
are the stream, each once. A step is measured under what serves before the adapter sees it. Moves are carried out a round a step, as
devices of a cluster would; `grace-moe run --adapt` does the same on ranks. docs/adapt.md#a-worked-example has the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from grace_moe import Placement, RoutingTrace, Topology, evaluate, plan
from grace_moe.adapt import Adapter, AdaptOptions, DecisionOptions, Prices, stages_of

REQUESTS = 8
"""Of a step."""
PRICES = Prices(move=48.0, local_move=4.8)
"""Of the embedded model: an expert has the bytes of 48 copies of a token, there and back."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One step under one placement."""

    copies: float
    """Of a token, between nodes."""
    busiest: float
    """Load of the busiest device over the mean."""


@dataclass(kw_only=True)
class Day:
    """What happened, step by step."""

    stayed: list[StepCost]
    followed: list[StepCost]
    moved: list[int]
    """Expert copies loaded in each step."""
    told: list[int]
    """Steps of decisions: a change was told from noise."""
    turned: int
    """First step of code."""


def steps_of(prose: RoutingTrace, code: RoutingTrace) -> Iterator[tuple[bool, RoutingTrace]]:
    """Whether it is code, and the tokens of so many requests in random order, until there are no more."""
    for is_code, trace in ((False, prose), (True, code)):
        requests = np.random.default_rng(0).permutation(np.unique(trace.requests))
        for first in range(0, len(requests) - REQUESTS + 1, REQUESTS):
            yield is_code, trace.select(np.isin(trace.requests, requests[first : first + REQUESTS]))


def cost_of(placement: Placement, step: RoutingTrace) -> StepCost:
    found = evaluate(placement, step)
    return StepCost(copies=found.cross_node_copies, busiest=found.load_max_over_mean)


def follow(placement: Placement, planned_on: RoutingTrace, prose: RoutingTrace, code: RoutingTrace) -> Day:
    """Serve the stream: measure, watch, decide, and move a round of experts a step."""
    adapter = Adapter(placement, planned_on, options=AdaptOptions(decision=DecisionOptions(prices=PRICES)))
    day = Day(stayed=[], followed=[], moved=[], told=[], turned=0)
    target, waiting = placement, list[tuple[tuple[int, ...], int]]()
    for number, (is_code, step) in enumerate(steps_of(prose, code)):
        day.turned += not is_code
        day.stayed.append(cost_of(placement, step))
        day.followed.append(cost_of(adapter.serving, step))
        adapter.monitor.observe(step.topk_ids, step.requests.astype(np.int64) + (is_code << 32))
        decision = adapter.look()
        if decision is not None:
            day.told.append(number)
            print(f"step {number}: {decision.reason}")
            if decision.placement is not None:
                target, stages = decision.placement, stages_of(decision.placement, adapter.serving)
                waiting = [(stage.layers, len(moves)) for stage in stages for moves in stage.rounds]
        day.moved.append(waiting.pop(0)[1] if waiting else 0)
        adapter.serving = arrived(adapter.serving, target, {layer for layers, _ in waiting for layer in layers})
    return day


def arrived(serving: Placement, target: Placement, late: Set[int]) -> Placement:
    """Layers whose stage has arrived switch; the others serve on as before."""
    layers = tuple(old if index in late else new for index, (old, new) in enumerate(zip(serving.layers, target.layers, strict=True)))
    return replace(target, layers=layers)


WIDTH, LEFT, RIGHT, HEIGHT, GAP, TOP = 720, 64, 20, 150, 46, 44
"""Pixels: of the picture, beside the panels, of a panel, between two, above the first."""
STAYED, FOLLOWED, MARK = "#8a929c", "#1f6fb5", "#d9541e"
STYLE = "text{font-family:system-ui,sans-serif;font-size:12px;fill:#222}polyline{fill:none;stroke-width:1.8}"
SMOOTH = 5
"""Steps of which a point is the mean."""


def picture(day: Day) -> str:
    """An SVG: copies and balance of each step under the plan that stays and the one that follows, and the moves."""
    panels = [
        ("copies of a token between nodes", [[cost.copies for cost in costs] for costs in (day.stayed, day.followed)]),
        ("busiest device over the mean", [[cost.busiest for cost in costs] for costs in (day.stayed, day.followed)]),
    ]
    steps, height = len(day.moved), TOP + len(panels) * (HEIGHT + GAP) + 56
    drawn = [f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>']
    drawn += [words(LEFT, 18, "plan of prose, stays", STAYED), words(LEFT + 150, 18, "plan that follows", FOLLOWED)]
    for number, (title, lines) in enumerate(panels):
        drawn += panel(title, [smoothed(line) for line in lines], TOP + number * (HEIGHT + GAP), steps)
    foot = TOP + len(panels) * (HEIGHT + GAP)
    drawn.append(words(LEFT, foot - 4, f"expert copies that arrive, {sum(day.moved)} in all"))
    for step, moved in enumerate(day.moved):
        if moved:
            x, y = x_of(step, steps) - 2, foot + 30 - 3 * moved
            drawn.append(f'<rect x="{x:.1f}" y="{y}" width="4" height="{3 * moved}" fill="{FOLLOWED}"/>')
    told = [(step, "told", "start") for step in day.told if step >= day.turned][:1]
    for step, name, anchor in [(day.turned, "turns to code", "end"), *told]:
        x = x_of(step, steps)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{foot + 30}" stroke="{MARK}" stroke-dasharray="4 3"/>')
        drawn.append(words(x, foot + 46, f"{name}, step {step}", MARK, anchor))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    title = f"A stream turns to code at step {day.turned}; {sum(day.moved)} expert copies move, and traffic and balance recover."
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", *drawn, "</svg>"]) + "\n"


def panel(title: str, lines: Sequence[Sequence[float]], top: int, steps: int) -> list[str]:
    least, most = min(map(min, lines)), max(map(max, lines))
    drawn = [words(LEFT, top - 4, title)]
    for value in (least, most):
        y = top + HEIGHT * (most - value) / (most - least)
        drawn.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e6ea"/>')
        drawn.append(words(LEFT - 8, y + 4, f"{value:.2f}", anchor="end"))
    for line, colour in zip(lines, (STAYED, FOLLOWED), strict=True):
        points = (f"{x_of(step, steps):.1f},{top + HEIGHT * (most - value) / (most - least):.1f}" for step, value in enumerate(line))
        drawn.append(f'<polyline points="{" ".join(points)}" stroke="{colour}"/>')
    return drawn


def smoothed(line: Sequence[float]) -> list[float]:
    """Each value with the ones before it, as many as make a point."""
    return [float(np.mean(line[max(0, step + 1 - SMOOTH) : step + 1])) for step in range(len(line))]


def x_of(step: int, steps: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, steps - 1)


def words(x: float, y: float, text: str, colour: str = "#222", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prose", type=Path, help="trace of the traffic that is planned for")
    parser.add_argument("code", type=Path, help="trace of what comes then")
    parser.add_argument("--topology", default="2x1")
    parser.add_argument("-o", "--output", type=Path, default=Path("follow.svg"))
    arguments = parser.parse_args()
    planned_on, prose = RoutingTrace.load(arguments.prose).split_requests()
    placement = plan(planned_on, Topology.parse(arguments.topology))
    planned_on.save("planned_on.safetensors")
    placement.save("plan.json")
    day = follow(placement, planned_on, prose, RoutingTrace.load(arguments.code))
    arguments.output.write_text(picture(day), encoding="utf-8")
    for name, costs in (("stays", day.stayed), ("follows", day.followed)):
        last = costs[-20:]
        copies, busiest = (np.mean([getattr(cost, field) for cost in last]) for field in ("copies", "busiest"))
        print(f"last {len(last)} steps, plan {name}: {copies:.3f} copies, busiest device {busiest:.3f}")


if __name__ == "__main__":
    main()
