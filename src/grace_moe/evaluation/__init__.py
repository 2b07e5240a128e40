"""What a placement costs: traffic, load and memory on a trace."""

from grace_moe.cost.layer_time import LayerTime, modelled_layer_time
from grace_moe.evaluation.compare import Comparison, ComparisonRow, SlotLimits, compare
from grace_moe.evaluation.diagnose import LEAST_GAIN, Diagnosis, diagnose
from grace_moe.evaluation.halves import parts_of
from grace_moe.evaluation.memory import over_memory
from grace_moe.evaluation.methods import parse_method
from grace_moe.evaluation.metrics import METRICS, Evaluation
from grace_moe.evaluation.pareto import ParetoPoint, pareto
from grace_moe.evaluation.replay import evaluate
from grace_moe.evaluation.serving import Serving
from grace_moe.evaluation.size import SizePoint, Sweep, size, stops_mattering
from grace_moe.evaluation.traffic import cross_node_bytes, cross_node_bytes_per_token, passes_of_tokens

__all__ = [
    "LEAST_GAIN",
    "METRICS",
    "Comparison",
    "ComparisonRow",
    "Diagnosis",
    "Evaluation",
    "LayerTime",
    "ParetoPoint",
    "Serving",
    "SizePoint",
    "SlotLimits",
    "Sweep",
    "compare",
    "cross_node_bytes",
    "cross_node_bytes_per_token",
    "diagnose",
    "evaluate",
    "modelled_layer_time",
    "over_memory",
    "pareto",
    "parse_method",
    "parts_of",
    "passes_of_tokens",
    "size",
    "stops_mattering",
]
