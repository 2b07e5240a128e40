"""What devices do in a second: presets of well-known ones, or what a topology's calibration says (docs/cost.md#presets)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from grace_moe.cost.calibration import Calibration
from grace_moe.cost.compute import ExpertKernel
from grace_moe.cost.exchange import TransportKernel
from grace_moe.cost.sizes import ModelSizes
from grace_moe.errors import TopologyError
from grace_moe.topology import PRESETS, Topology

PHASES = ("prefill", "decode")
_ASSUMED = "a100"
"""Of a topology that says nothing of its devices, and has not the links of another's preset."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A kind of device."""

    name: str
    memory_bytes: float
    memory_bytes_per_s: float
    flops_per_s: Mapping[str, float]
    """Dense, by bytes of a weight: `2`, `1`, `0.5`."""
    source: str
    """Of the numbers above, and of the kernels."""
    calibration: Calibration

    def peak(self, weight_bytes: float) -> float:
        """FLOP/s with weights of so many bytes; a precision that the device hasn't is computed in the next that it has."""
        wanted = "0.5" if weight_bytes < 1 else "1" if weight_bytes < 2 else "2"
        order = ("0.5", "1", "2")
        return next(self.flops_per_s[name] for name in order[order.index(wanted) :] if name in self.flops_per_s)


@cache
def presets() -> Mapping[str, Hardware]:
    """By name; `like` ones take another's fitted kernels, scaled by the datasheets' ratios."""
    rows = json.loads(resources.files("grace_moe.cost").joinpath("presets.json").read_text("utf-8"))
    found: dict[str, Hardware] = {}
    for name, row in sorted(rows.items(), key=lambda item: "like" in item[1]):
        like = row.pop("like", None)
        calibration = Calibration.from_dict(row.pop("calibration", {}), f"preset {name}")
        hardware = Hardware(name=name, calibration=calibration, **row)
        found[name] = hardware if like is None else replace(hardware, calibration=_scaled(found[like], hardware))
    return found


def _scaled(base: Hardware, to: Hardware) -> Calibration:
    """The kernels of one device as those of another, at the same share of what each could do."""
    slower_memory = base.memory_bytes_per_s / to.memory_bytes_per_s
    slower_compute = base.peak(1) / to.peak(1)
    compute = tuple(
        replace(k, byte_s=k.byte_s * slower_memory, expert_s=k.expert_s * slower_memory, flop_s=k.flop_s * slower_compute)
        for k in base.calibration.compute
    )
    return replace(base.calibration, compute=compute)


def hardware_of(topology: Topology) -> Hardware:
    """Its devices' preset, with the topology's own calibration where it has one.

    Raises:
        TopologyError: of a hardware that is not known, or a calibration that can't be read.
    """
    name = topology.hardware
    if name is None:
        name = "h100" if (topology.intra_node, topology.cross_node) == PRESETS["h100-400g"] else _ASSUMED
    if name not in presets():
        raise TopologyError(topology.source, "hardware", f"{name!r} is unknown", f"use one of {', '.join(sorted(presets()))}")
    found = presets()[name]
    if topology.calibration is None:
        return found
    own = Calibration.from_dict(topology.calibration, topology.source)
    return replace(
        found,
        source=f"calibration in {topology.source}",
        calibration=Calibration(
            compute=own.compute or found.calibration.compute,
            transports=own.transports or found.calibration.transports,
            fits=own.fits,
        ),
    )


def expert_kernel(hardware: Hardware, phase: str, model: ModelSizes) -> ExpertKernel:
    """The kernel of a phase, for the model's precision; of several versions, the newest.

    Raises:
        TopologyError: the calibration has no kernel at all.
    """
    kernels = [kernel for kernel in hardware.calibration.compute if kernel.phase in (phase, "any")] or list(hardware.calibration.compute)
    if not kernels:
        raise TopologyError(hardware.name, "calibration.compute", "no kernel", "calibrate with a table of expert kernels")
    own = [kernel for kernel in kernels if kernel.phase == phase] or kernels
    kernel = max(own, key=lambda k: version_key(k.version))
    measured = 0.5 if "4" in kernel.dtype else 2.0 if "16" in kernel.dtype else 1.0
    return replace(kernel, flop_s=kernel.flop_s * hardware.peak(measured) / hardware.peak(model.weight_bytes))


def transport_kernel(topology: Topology, backend: str, direction: str) -> TransportKernel | None:
    """The kernel of DeepEP over the topology's links; None without any.

    Of several it is one that was fitted on several nodes where the topology has several, and then the newest.
    """
    kernels = [k for k in hardware_of(topology).calibration.transports if (k.backend, k.direction) == (backend, direction)]
    if not kernels:
        return None
    several = topology.num_nodes > 1
    kernel = max(kernels, key=lambda k: (max(k.nodes) > 1 if several else 1 in k.nodes, version_key(k.version)))
    return kernel.over(topology.intra_node.bandwidth_bytes_per_s, topology.cross_node.bandwidth_bytes_per_s)


def version_key(version: str) -> tuple[int, ...]:
    """To compare versions by: 0.5.12 is after 0.5.6.post2."""
    return tuple(int(part) for part in version.replace("post", "").replace("rc", "").split(".") if part.isdigit())
