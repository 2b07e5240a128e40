"""What a decision has brought: the placement that served before it is replayed on requests that came in since.

Which experts a token chooses does not depend on where they are, so that what would have been is known, for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grace_moe.adapt.candidates import Judge
from grace_moe.adapt.decide import Decision, DecisionOptions, decision_of
from grace_moe.placement import Placement
from grace_moe.trace import RoutingTrace
from grace_moe.trace.change import FEWEST_REQUESTS


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
    judge = Judge(serving, fresh, options.prices, options.seed)
    found = judge.candidates({index: former.layers[index] for index in changed})
    total = sum(one.gain.mean for one in found.values())
    going = {index: one for index, one in found.items() if one.worth(options.prices, options.horizon) > 0}
    if not going:
        return Review(measured=-total / len(serving.layers), back=None)
    balance = float(np.mean([one.balance for one in going.values()]))
    back = decision_of(serving, list(going), going, options, best=sum(one.gain.mean for one in going.values()), balance=balance)
    reason = (
        f"{len(going)} of {len(serving.layers)} layers go back: since they moved, traffic costs {back.gain.mean:.3f} copies per token more"
    )
    return Review(measured=-total / len(serving.layers), back=replace(back, reason=reason))
