"""How the mix of domains changes over a day: one function a scenario, from steps to the share of each domain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from grace_moe.errors import UsageError

Floats = npt.NDArray[np.float64]
Scenario = Callable[[np.random.Generator, int, int], Floats]
"""(random numbers, steps, domains) -> `[steps, domains]` shares of the requests that come in, rows that sum to 1."""


def _one(domain: int, domains: int) -> Floats:
    row: Floats = np.eye(domains)[domain % domains]
    return row


def _between(part: Floats, domains: int) -> Floats:
    """From the first domain to the second, by the part that the second has."""
    return np.outer(1 - part, _one(0, domains)) + np.outer(part, _one(1, domains))


def _day(steps: int) -> Floats:
    """`[steps]` time of day, 0 to 1."""
    return np.arange(steps) / steps


def steady(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """One domain all day."""
    return _between(np.zeros(steps), domains)


def steady_mix(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """All domains, always alike."""
    return np.full((steps, domains), 1 / domains)


def noise(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """All domains; shares drawn anew each step, about the same mean."""
    return random.dirichlet(np.full(domains, 5.0), size=steps)


def shift(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Another domain after a quarter of the day."""
    return _between((_day(steps) >= 0.25).astype(float), domains)


def there_and_back(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Another domain for the middle half of the day."""
    return _between(((_day(steps) >= 0.25) & (_day(steps) < 0.75)).astype(float), domains)


def late_shift(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Another domain in the last twentieth: too late for moves to pay."""
    return _between((_day(steps) >= 0.95).astype(float), domains)


def drift(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """From one domain to another, evenly, over the middle half."""
    return _between(np.clip(2 * _day(steps) - 0.5, 0, 1), domains)


def day_and_night(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Shares that go to and fro, twice a day."""
    return _between(0.5 - 0.5 * np.cos(4 * np.pi * _day(steps)), domains)


def bursts(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Another domain for ten steps in sixty."""
    return _between((np.arange(steps) % 60 >= 50).astype(float), domains)


def flicker(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Two domains in turn, twenty-five steps each."""
    return _between((np.arange(steps) // 25 % 2).astype(float), domains)


def tenants(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Shares of several tenants that wander."""
    walk = np.cumsum(random.normal(scale=0.08, size=(steps, domains)), axis=0)
    shares = np.exp(walk - walk.max(axis=1, keepdims=True))
    mix: Floats = shares / shares.sum(axis=1, keepdims=True)
    return mix


def turns(random: np.random.Generator, steps: int, domains: int) -> Floats:
    """Each quarter of the day another domain: hot experts rotate."""
    return np.stack([_one(int(4 * part), domains) for part in _day(steps)])


SCENARIOS: dict[str, Scenario] = {
    "steady": steady,
    "steady-mix": steady_mix,
    "noise": noise,
    "shift": shift,
    "there-and-back": there_and_back,
    "late-shift": late_shift,
    "drift": drift,
    "day-and-night": day_and_night,
    "bursts": bursts,
    "flicker": flicker,
    "tenants": tenants,
    "turns": turns,
}
"""Name -> scenario."""


def check_scenario(name: str) -> None:
    """Raise UsageError if it is unknown: before plans are made, as those take long."""
    if name not in SCENARIOS:
        raise UsageError(f"scenario {name!r} is unknown; use one of {', '.join(SCENARIOS)}")


def scenario_weights(name: str, *, steps: int, domains: int, seed: int) -> Floats:
    """`[steps, domains]` shares of a scenario of `SCENARIOS`."""
    return SCENARIOS[name](np.random.default_rng([seed, 1]), steps, domains)
