"""Names of what is compared: METHOD, or METHOD+POLICY."""

from __future__ import annotations

from typing import Any

from grace_moe.choice import BATCH_POLICIES, FIRST_TOKENS
from grace_moe.errors import UsageError
from grace_moe.evaluation.serving import Serving
from grace_moe.planning import DEFAULT_METHOD, METHODS

REQUESTS = "requests"
"""The policy of `grace+requests`: planned for, and measured with, requests placed by their first tokens."""
DECODE_EXPERTS = "decode"
"""The policy of `grace+decode`: planned with replicas of its own for decode, which limit the active experts."""
_PLANNED: dict[str, dict[str, Any]] = {REQUESTS: {"request_placement": True}, DECODE_EXPERTS: {"decode": "experts"}}
"""Policies that are planned for: policy -> options of `grace`."""


def parse_method(name: str) -> tuple[str, str | None]:
    """`eplb+lplb` as method and policy; the policy is None where the placement's own choice is meant.

    Raises:
        UsageError: an unknown method or policy.
    """
    method, plus, policy = name.partition("+")
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    policies = (*BATCH_POLICIES, *_PLANNED) if method == DEFAULT_METHOD else BATCH_POLICIES
    if plus and policy not in policies:
        raise UsageError(f"policy {policy!r} of {name!r} is unknown; use one of {', '.join(policies)}")
    return method, policy if plus else None


def options_of(method: str, policy: str | None, backend: str | None = None) -> dict[str, Any]:
    """Arguments of `plan` for the policy and the backend; none for what any placement takes."""
    options = {} if policy is None else _PLANNED.get(policy, {})
    return options if backend is None or method != DEFAULT_METHOD else {**options, "backend": backend}


def is_of_batches(policy: str | None) -> bool:
    """Whether the policy changes what batches or decode cost."""
    return policy in (*BATCH_POLICIES, DECODE_EXPERTS)


def serving_of(policy: str | None, batch_tokens: int | None) -> Serving:
    """How a placement is served under the policy, in prefill batches of so many tokens."""
    return Serving(
        policy=policy if policy in BATCH_POLICIES else None,
        batch_tokens=batch_tokens,
        first_tokens=FIRST_TOKENS if policy == REQUESTS else None,
    )
