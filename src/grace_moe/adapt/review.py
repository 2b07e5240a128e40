"""What a decision has brought: the placement that served before it is replayed on requests that came in since.

Which experts a token chooses does not depend on where they are, so that what would have been is known, for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grace_moe.adapt.decide import Decision, DecisionOptions
from grace_moe.adapt.detect import FEWEST_REQUESTS
from grace_moe.adapt.judge import Gain, balance_of, gains_of
from grace_moe.adapt.request_costs import costs_of_layers
from grace_moe.placement import Placement, difference
from grace_moe.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class Review:
    """Of the layers that have moved."""

    measured: float
    """Copies per token, mean over layers, that are saved by what serves; below 0, it does harm."""
    back: Decision | None
    """To go back where harm is sure, and going back pays for its moves."""


def review(former: Placement, serving: Placement, fresh: RoutingTrace, options: DecisionOptions) -> Review | None:
    """Compare what serves with what served before; None where nothing has moved yet, or too few requests have come in since.

    Args:
        fresh: tokens that came in since; none of them can have led to the moves.
    """
    changed = [index for index, (new, old) in enumerate(zip(serving.layers, former.layers, strict=True)) if new != old]
    if not changed or len(np.unique(fresh.requests)) < FEWEST_REQUESTS:
        return None
    as_before, as_now = (costs_of_layers(placement, fresh, changed) for placement in (former, serving))
    gains = gains_of(as_before, as_now, options.prices, seed=options.seed)
    layers, moves = len(serving.layers), difference(former, serving)
    taken = {}
    for index, before, gain in zip(changed, as_before, gains, strict=True):
        moved, far = int(moves.loads[index].sum()), int(moves.from_other_nodes[index].sum())
        if gain.low * options.horizon > options.prices.of_moves(moved, far):
            taken[index] = (moved, far, gain, balance_of(before))
    measured = -sum(gain.mean for gain in gains) / layers
    if not taken:
        return Review(measured=measured, back=None)
    moved, far = sum(one[0] for one in taken.values()), sum(one[1] for one in taken.values())
    gain = Gain(mean=sum(one[2].mean for one in taken.values()) / layers, low=sum(one[2].low for one in taken.values()) / layers)
    back = Decision(
        placement=replace(
            serving, layers=tuple(former.layers[index] if index in taken else layer for index, layer in enumerate(serving.layers))
        ),
        reason=f"{len(taken)} of {layers} layers go back: since they moved, traffic costs {gain.mean:.3f} copies per token more",
        moved=moved,
        from_other_nodes=far,
        gain=gain,
        cost=options.prices.of_moves(moved, far) / options.horizon / layers,
        balance=float(np.mean([one[3] for one in taken.values()])),
        gain_left=0.0,
        considered=tuple(taken),
    )
    return Review(measured=measured, back=back)
