"""How hard each search tries, and by which prices: from nothing, at a higher price of imbalance, and from a placement that serves."""

from grace_moe.planning.constants import (
    AGAIN_HEAT,
    AGAIN_PROPOSALS,
    LONG_HEAT,
    LONG_PROPOSALS,
    PACKING_HEAT,
    REPACK_HEAT,
    REPACK_SWAPS_PER_SLOT,
    REPLAN_HEAT,
    REPLAN_PROPOSALS,
    SHORT_HEAT,
    SHORT_PROPOSALS,
    START_HEAT,
    START_PROPOSALS,
    STAY,
    SWAPS_PER_SLOT,
)
from grace_moe.planning.grace.search.devices import PackingOptions
from grace_moe.planning.grace.search.node_state import SearchOptions


def _search(proposals: int, heat: tuple[float, float]) -> SearchOptions:
    return SearchOptions(proposals=proposals, hot=heat[0], cold=heat[1])


def _packing(swaps_per_slot: int, heat: tuple[float, float], stay: float) -> PackingOptions:
    return PackingOptions(proposals_per_slot=swaps_per_slot, hot=heat[0], cold=heat[1], stay=stay)


LONG = _search(LONG_PROPOSALS, LONG_HEAT)
SHORT = _search(SHORT_PROPOSALS, SHORT_HEAT)
AGAIN = _search(AGAIN_PROPOSALS, AGAIN_HEAT)
FROM_START = _search(START_PROPOSALS, START_HEAT)
REPLAN = _search(REPLAN_PROPOSALS, REPLAN_HEAT)
"""From a placement that serves already: a short, cold search moves few experts."""
PACK = _packing(SWAPS_PER_SLOT, PACKING_HEAT, stay=0.0)
REPACK = _packing(REPACK_SWAPS_PER_SLOT, REPACK_HEAT, stay=STAY)
