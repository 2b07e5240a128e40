"""Placement that follows traffic: watch what is served, tell change from noise, decide what to move, and in which order.

It knows no engine and no runtime; docs/adapt.md explains it.
"""

from grace_moe.adapt.adapter import Adapter
from grace_moe.adapt.decide import Decision, DecisionOptions, decide
from grace_moe.adapt.effects import Effects, effects_of
from grace_moe.adapt.episodes import Look
from grace_moe.adapt.monitor import Monitor, MonitorOptions
from grace_moe.adapt.options import AdaptOptions
from grace_moe.adapt.prices import Prices
from grace_moe.adapt.schedule import Move, Stage, stages_of
from grace_moe.adapt.status import AdaptStatus
from grace_moe.trace.change import Change, change_between

__all__ = [
    "AdaptOptions",
    "AdaptStatus",
    "Adapter",
    "Change",
    "Decision",
    "DecisionOptions",
    "Effects",
    "Look",
    "Monitor",
    "MonitorOptions",
    "Move",
    "Prices",
    "Stage",
    "change_between",
    "decide",
    "effects_of",
    "stages_of",
]
