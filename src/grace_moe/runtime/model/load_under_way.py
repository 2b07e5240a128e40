"""What the model that is being loaded will share.

Transformers finds parallel styles and implementations by name, in registries of the process, and builds them without an argument of
ours. That leaves two process globals: the names (registered by `loading.load_model`, always to the same classes), and the load that is
under way, which is set only while `from_pretrained` runs. A loaded model keeps its own session; several can be loaded one after the
other, and each keeps working.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from grace_moe.errors import ModelError
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.model.session import ExpertParallelSession


@dataclass(frozen=True, kw_only=True)
class LoadUnderWay:
    """Of one model on one rank."""

    meter: TrafficMeter
    session: ExpertParallelSession | None
    """None for Transformers' own expert parallelism."""
    rows: int = 1
    """Rows of an experts' parameter that belong to one expert."""


_UNDER_WAY: ContextVar[LoadUnderWay] = ContextVar("load under way")


@contextmanager
def loading_for(meter: TrafficMeter, session: ExpertParallelSession | None = None, rows: int = 1) -> Iterator[None]:
    """Models that are loaded inside the block share these."""
    token = _UNDER_WAY.set(LoadUnderWay(meter=meter, session=session, rows=rows))
    try:
        yield
    finally:
        _UNDER_WAY.reset(token)


def load_under_way() -> LoadUnderWay:
    """Of the block that runs. Raises ModelError outside of one: the model is loaded by something else."""
    try:
        return _UNDER_WAY.get()
    except LookupError as error:
        raise ModelError("grace's expert parallelism: load the model with grace_moe.runtime.model.loading.load_model") from error
