"""What an operator sees of adaptation: metrics to scrape, a log line a decision, and one line to read."""

from grace_moe.adapt.telemetry.decision_log import decision_line, effect_line, status_line
from grace_moe.adapt.telemetry.follow import Follower
from grace_moe.adapt.telemetry.metrics import MetricsServer, require_metrics
from grace_moe.adapt.telemetry.traffic_view import TrafficView, traffic_view

__all__ = ["Follower", "MetricsServer", "TrafficView", "decision_line", "effect_line", "require_metrics", "status_line", "traffic_view"]
