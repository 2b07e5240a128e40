"""Simulated annealing, once for all searches: cool, propose, accept or not, keep the best.

A search is four compiled functions on a state of its own, a NamedTuple of arrays:

- `propose(state)` draws a move, or none: its first field is then negative;
- `change(state, move, most)` tries it: by how much the energy changes; where that is surely over `most`, infinity will do;
- `apply(state, move, energy)` carries out what was tried and gives the energy after it, `energy` but for rounding;
- `undo(state, move)` takes back what was tried.

The state has `solution` and `best`, one-dimensional views of what is searched for and of the best of it so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from grace_moe.compiled import inlined


class Cooling(NamedTuple):
    """How long to search, and how far uphill it may go."""

    proposals: int
    """Moves drawn."""
    steps: int
    """Of them, those after which the last temperature is reached."""
    hot: float
    """First temperature, in units of energy."""
    cold: float
    """Last temperature."""
    least_gain: float = 0.0
    """By how much a new best must be better."""


def make_anneal(
    propose: Callable[[Any], Any],
    change: Callable[[Any, Any, float], float],
    apply: Callable[[Any, Any, float], float],
    undo: Callable[[Any, Any], None],
) -> Callable[[Any, float, Cooling, int], tuple[float, float]]:
    """The loop over four functions of a search, for its own compiled entry to call: what the cache on disk holds is the entry."""

    @inlined
    def anneal(state: Any, energy: float, cooling: Cooling, seed: int) -> tuple[float, float]:
        """Leave the best found in `state.best`; the energy at the end, and the best. `energy` is that of the state as it is."""
        np.random.seed(seed)
        temperature = cooling.hot
        factor = (cooling.cold / cooling.hot) ** (1.0 / max(1, cooling.steps))
        best = energy
        for _ in range(cooling.proposals):
            temperature *= factor
            move = propose(state)
            if move[0] < 0:
                continue
            most = -np.log(np.random.random() + 1e-300) * temperature
            more = change(state, move, most)
            if more > most:
                undo(state, move)
                continue
            energy = apply(state, move, energy + more)
            if energy < best - cooling.least_gain:
                best = energy
                for i in range(state.best.shape[0]):
                    state.best[i] = state.solution[i]
        return energy, best

    return anneal
