"""What following traffic has cost and saved since the start, against the plan that served then: how far moves may go before they pay.

Nobody knows how long traffic stays as it is. So moves are paid out of an account. It earns a small share of what traffic costs, and what
moving saves, as measured. So all that was spent on moves is never more than that share above what they have saved, errors of measuring
aside. A good move soon pays for the next ones, and who is wrong again and again soon moves no more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from grace_moe.adapt.prices import Prices
from grace_moe.placement import LayerPlacement, Placement, difference

CostOf = Callable[[int, LayerPlacement], float]
"""(index of a layer, where its experts are) -> copies per token that some traffic costs there, balance priced in."""


class Account:
    """Sums are in copies between nodes, of all tokens and layers."""

    def __init__(self, start: Placement, prices: Prices, *, share: float, most: float) -> None:
        """
        Args:
            share: of what traffic costs under `start`, that moving may cost.
            most: that the balance may be, so that what was saved long ago does not pay for any number of mistakes.
        """
        self._start, self._serving, self._prices = start, start, prices
        self._share, self._most = share, most
        layers = len(start.layers)
        self.settled = 0
        """Step up to which costs and savings are in."""
        self._switched = np.zeros(layers, np.int64)  # at which step
        self._saves = np.zeros(layers)  # copies per token, when settled last
        self._cost = 0.0  # copies per token, all layers
        self.balance = 0.0
        """That may be spent."""
        self.cost = 0.0
        """Of the traffic so far, had the start served all of it."""
        self.saved = 0.0
        """Of that, by what served instead."""
        self.spent = 0.0
        """On moves."""

    @property
    def saved_share(self) -> float:
        """Of what traffic would have cost: saved, less what moves have cost."""
        return (self.saved - self.spent) / self.cost if self.cost else 0.0

    def switch(self, serving: Placement, step: int) -> None:
        """Pay for what has moved, as it begins to serve."""
        if serving is self._serving:
            return
        moves = cost_of_moves(serving, self._serving, self._prices)
        self.spent += moves
        self.balance -= moves
        changed = [new != old for new, old in zip(serving.layers, self._serving.layers, strict=True)]
        self._switched[changed] = step
        self._serving = serving

    def settle(self, step: int, tokens: float, cost_of: CostOf | None) -> None:
        """Add what the steps since the last time have cost and saved.

        Args:
            step: up to which.
            tokens: of a step.
            cost_of: by their traffic; None = nothing of it is known, and it is taken to be like that of before.
        """
        steps = step - self.settled
        saves = self._saves
        if cost_of is not None:
            before = [cost_of(index, layer) for index, layer in enumerate(self._start.layers)]
            pairs = enumerate(zip(self._serving.layers, self._start.layers, strict=True))
            saves = np.array([before[index] - cost_of(index, new) if new != old else 0.0 for index, (new, old) in pairs])
            self._cost = sum(before)
        since_switch = np.clip(step - self._switched, 0, steps)
        saved = float(saves @ since_switch + self._saves @ (steps - since_switch)) * tokens
        cost = self._cost * steps * tokens
        self._saves, self.settled = saves, step
        self.cost += cost
        self.saved += saved
        self.balance = min(self._most, self.balance + self._share * cost + saved)

    def may_spend(self, target: Placement) -> float:
        """What moves may cost beside those that are under way to a target."""
        return self.balance - cost_of_moves(target, self._serving, self._prices)


def cost_of_moves(new: Placement, old: Placement, prices: Prices) -> float:
    """Copies that the loads of experts are worth."""
    moves = difference(new, old)
    return prices.of_moves(moves.moved, int(moves.from_other_nodes.sum()))
