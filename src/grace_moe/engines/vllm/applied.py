"""A plan's map is applied, whatever vLLM thinks that it gains."""

from __future__ import annotations

from typing import Any


class Applied:
    """vLLM's platform as its balancer asks it. On ROCm, without asynchronous balancing, that skips a map whose balance over all layers
    together is not 5% better; a plan that spares traffic would never be in place, nor a re-planning of a few slots."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform
        self.ours = False
        """Whether the map that the policy gave last is a plan's."""

    def is_rocm(self) -> bool:
        """Whether its rule for ROCm holds."""
        return bool(self._platform.is_rocm()) and not self.ours

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)
