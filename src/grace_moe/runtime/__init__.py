"""The distributed engine: a plug-in of Transformers on torch.distributed.

Needs the extra `grace-moe[runtime]`; `require_runtime` says so in one line where it is missing. The other names are what a program of
one's own imports (docs/run.md); they are loaded, and torch with them, when they are used.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from grace_moe.errors import MissingExtraError

if TYPE_CHECKING:
    from grace_moe.runtime.job.placed_model import placed_model
    from grace_moe.runtime.job.ranks import leave
    from grace_moe.runtime.migration.adaptation import AdaptingOptions, adapting
    from grace_moe.runtime.model.gradients import clip_gradients, finish_expert_gradients
    from grace_moe.runtime.model.step import Step

_HOMES = {
    "AdaptingOptions": "migration.adaptation",
    "Step": "model.step",
    "adapting": "migration.adaptation",
    "clip_gradients": "model.gradients",
    "finish_expert_gradients": "model.gradients",
    "leave": "job.ranks",
    "placed_model": "job.placed_model",
}

__all__ = ["AdaptingOptions", "Step", "adapting", "clip_gradients", "finish_expert_gradients", "leave", "placed_model", "require_runtime"]


def require_runtime() -> None:
    """Raise MissingExtraError unless torch, transformers and accelerate can be imported."""
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "runtime")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        require_runtime()
        return getattr(import_module(f"grace_moe.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'grace_moe.runtime' has no attribute {name!r}")
