"""Placement that follows traffic where counters are all there is: loads of experts step by step, and not which fire together."""

from grace_moe.adapt.by_counts.adapter import LoadAdapter
from grace_moe.adapt.by_counts.decide import decide_by_counts
from grace_moe.adapt.by_counts.detect import change_of_loads
from grace_moe.adapt.by_counts.monitor import LoadMonitor

__all__ = ["LoadAdapter", "LoadMonitor", "change_of_loads", "decide_by_counts"]
