"""A proxy that stands before an engine's own server and tells it which rank takes each request.

Needs the extra `grace-moe[frontend]`; `require_frontend` says so in one line where it is missing.
"""

from importlib.util import find_spec

from grace_moe.errors import MissingExtraError


def require_frontend() -> None:
    """Raise MissingExtraError unless starlette, uvicorn, httpx2 and tokenizers can be imported."""
    for package in ("starlette", "uvicorn", "httpx2", "tokenizers"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "frontend")


__all__ = ["require_frontend"]
