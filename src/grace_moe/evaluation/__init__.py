"""What a placement costs: traffic, load and memory on a trace."""

from grace_moe.evaluation.replay import METRICS, Evaluation, evaluate
from grace_moe.evaluation.traffic import cross_node_bytes

__all__ = ["METRICS", "Evaluation", "cross_node_bytes", "evaluate"]
