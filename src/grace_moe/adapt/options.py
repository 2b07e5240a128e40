"""How traffic is watched: how often, how sure to be, and how much harm may be done."""

from __future__ import annotations

from dataclasses import dataclass, field

from grace_moe.adapt.decide import DecisionOptions
from grace_moe.adapt.monitor import MonitorOptions
from grace_moe.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How often to look, and how sure to be.

    Raises:
        UsageError: on construction, if one is out of range.
    """

    check_every: int = 5
    """Steps between two tests for a change."""
    recent_steps: int = 10
    """Steps that count as recent."""
    false_alarms: float = 1e-6
    """Of the test for a change, per step: 1e-6 = one run of 10,000 steps in a hundred has any."""
    persistence: float = 4.0
    """How much longer traffic is expected to stay as it is than it has been so: the horizon of a decision. Not tuned."""
    harm: float = 0.001
    """Of what traffic has cost since the start, the share that moving may cost before it has saved as much (`account.Account`). Chosen on
    OLMoE's `bursts` and `shift`, seeds 101 to 105."""
    decision: DecisionOptions = field(default_factory=DecisionOptions)
    """Its horizon is the longest."""
    monitor: MonitorOptions = field(default_factory=MonitorOptions)

    def __post_init__(self) -> None:
        if self.check_every < 1 or self.recent_steps < 1 or not 0 < self.false_alarms < 1:
            raise UsageError(
                f"check_every {self.check_every}, recent_steps {self.recent_steps}, false_alarms {self.false_alarms}: use steps of 1 or "
                "more, and a share between 0 and 1"
            )
        if not self.persistence > 0 or not 0 <= self.harm < 1:
            raise UsageError(f"persistence {self.persistence}, harm {self.harm}: use a persistence above 0, and a share from 0 to below 1")
