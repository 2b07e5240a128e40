"""A day of shifting traffic made of traces, against policies of placement: static, EPLB on a timer, by loads alone, ours, and an oracle."""

from grace_moe.adapt.simulate.day import METRICS, Day, DayOptions, run_day, run_days
from grace_moe.adapt.simulate.load_day import run_load_day
from grace_moe.adapt.simulate.policies import POLICIES, Following, Policy
from grace_moe.adapt.simulate.scenarios import SCENARIOS
from grace_moe.adapt.simulate.stream import StreamOptions

__all__ = [
    "METRICS",
    "POLICIES",
    "SCENARIOS",
    "Day",
    "DayOptions",
    "Following",
    "Policy",
    "StreamOptions",
    "run_day",
    "run_days",
    "run_load_day",
]
