"""The distributed engine: a plug-in of Transformers on torch.distributed.

Needs the extra `grace-moe[runtime]`; `require_runtime` says so in one line where it is missing.
"""

from importlib.util import find_spec

from grace_moe.errors import MissingExtraError


def require_runtime() -> None:
    """Raise MissingExtraError unless torch, transformers and accelerate can be imported."""
    for package in ("torch", "transformers", "accelerate"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "runtime")


__all__ = ["require_runtime"]
