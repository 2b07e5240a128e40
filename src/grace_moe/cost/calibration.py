"""What was fitted to measured times, as a topology file stores it (docs/cost.md#calibrate)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.exchange import DIRECTIONS, FEATURES, TransportKernel
from grace_moe.cost.fitting import FitError
from grace_moe.errors import TopologyError

_MEND = "run grace-moe calibrate again"
_K = TypeVar("_K", ExpertKernel, TransportKernel)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one kernel's times are predicted."""

    what: str
    backend: str
    """Whose times: a kind of `tables.KINDS`, or `profile`."""
    error: FitError
    """Of the rows that it was fitted to."""
    held_out: FitError | None = None
    """Of each fifth row, where it was fitted to the others."""
    regimes: Mapping[str, FitError] = field(default_factory=dict)
    """`error` by what was measured: tokens, nodes, loads."""
    without_nodes: Mapping[str, FitError] = field(default_factory=dict)
    """By number of nodes: the error of its rows, where it was fitted to the others."""
    left_out: FitError | None = None
    """Of all rows, each predicted by the fit without its number of nodes."""

    def to_dict(self) -> dict[str, Any]:
        """JSON, by the names of docs/cost.md."""
        value: dict[str, Any] = {"what": self.what, "backend": self.backend, **self.error.to_dict()}
        for name in ("held_out", "left_out"):
            error = getattr(self, name)
            if error is not None:
                value[name] = error.to_dict()
        for name in ("regimes", "without_nodes"):
            errors = getattr(self, name)
            if errors:
                value[name] = {regime: error.to_dict() for regime, error in errors.items()}
        return value


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted kernels, of one machine or several, and their fits' errors."""

    compute: tuple[ExpertKernel, ...] = ()
    transports: tuple[TransportKernel, ...] = ()
    fits: tuple[Mapping[str, Any], ...] = ()
    """`Fit.to_dict` of each."""

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return tuple(sorted({k.machine for k in self.compute} | {k.machine for k in self.transports}))

    def of(self, machine: str) -> Calibration:
        """The kernels of one machine, with the fits of all."""
        compute = tuple(kernel for kernel in self.compute if kernel.machine == machine)
        return Calibration(compute=compute, transports=tuple(k for k in self.transports if k.machine == machine), fits=self.fits)

    def to_dict(self) -> dict[str, Any]:
        """JSON for `Topology.calibration`."""
        return {
            "compute": [kernel.to_dict() for kernel in self.compute],
            "transports": [kernel.to_dict() for kernel in self.transports],
            "fits": [dict(fit) for fit in self.fits],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], source: str) -> Calibration:
        """What `to_dict` wrote.

        Raises:
            TopologyError: not of that form, or out of range.
        """
        compute = [_kernel(ExpertKernel, row, f"calibration.compute[{i}]", source) for i, row in _rows(value, "compute", source)]
        transports = [_transport(row, f"calibration.transports[{i}]", source) for i, row in _rows(value, "transports", source)]
        return cls(compute=tuple(compute), transports=tuple(transports), fits=tuple(row for _, row in _rows(value, "fits", source)))


def _rows(value: Mapping[str, Any], name: str, source: str) -> list[tuple[int, dict[str, Any]]]:
    rows = value.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TopologyError(source, f"calibration.{name}", "not a list of objects", _MEND)
    return list(enumerate(rows))


def _transport(row: dict[str, Any], where: str, source: str) -> TransportKernel:
    nodes, coefficients = row.get("nodes", [1]), row.get("coefficients")
    if not isinstance(nodes, list) or not all(type(count) is int and count > 0 for count in nodes):
        raise TopologyError(source, f"{where}.nodes", "not a list of numbers of nodes", _MEND)
    if row.get("backend") not in FEATURES or row.get("direction") not in DIRECTIONS or not isinstance(coefficients, dict):
        raise TopologyError(source, where, "no backend, direction and coefficients that are known", _MEND)
    for name, number in coefficients.items():
        if name not in FEATURES[row["backend"]] or not _is_time(number):
            raise TopologyError(source, f"{where}.coefficients.{name}", "not a feature of the backend, with seconds of 0 or more", _MEND)
    return _kernel(TransportKernel, row | {"nodes": tuple(nodes)}, where, source)


def _kernel(kind: type[_K], row: dict[str, Any], where: str, source: str) -> _K:
    """A dataclass from an object of its fields' names, each of its type; numbers are not negative."""
    types = get_type_hints(kind)
    for name, value in row.items():
        wanted = types.get(name)
        if wanted is None or (wanted is str and not isinstance(value, str)) or (wanted in (float, int) and not _is_time(value)):
            raise TopologyError(source, f"{where}.{name}", "unknown, or not a text or a number of 0 or more", _MEND)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in needed:
        if name not in row:
            raise TopologyError(source, f"{where}.{name}", "missing", _MEND)
    return kind(**row)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
