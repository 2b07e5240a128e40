"""GRACE-MoE: expert placement for Mixture-of-Experts models, planned from their own routing.

    >>> from grace_moe import Topology, plan, evaluate
    >>> from grace_moe.trace import synthetic_trace
    >>> trace = synthetic_trace(tokens=400, experts=16, top_k=4)
    >>> placement = plan(trace, Topology.parse("2x2"), method="linear")
    >>> evaluate(placement, trace).slots_total_over_experts
    1.0

Importing this package imports neither torch nor SciPy; names are loaded when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_moe import errors
    from grace_moe.evaluation import Evaluation, compare, evaluate
    from grace_moe.placement import Placement
    from grace_moe.planning import METHODS, plan
    from grace_moe.topology import Topology
    from grace_moe.trace import RoutingTrace

_HOMES = {
    "METHODS": "planning",
    "Evaluation": "evaluation",
    "Placement": "placement",
    "RoutingTrace": "trace",
    "Topology": "topology",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "plan": "planning",
}

__all__ = ["METHODS", "Evaluation", "Placement", "RoutingTrace", "Topology", "compare", "errors", "evaluate", "plan"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("grace-moe")
    if name == "errors":
        return import_module("grace_moe.errors")
    if name in _HOMES:
        return getattr(import_module(f"grace_moe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'grace_moe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
