"""`calibrate`: fits kernels of transports and experts, and links, to tables of measured times (docs/cost.md#calibrate)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from grace_moe.cost.calibration import Calibration, Fit
from grace_moe.cost.exchange import DEFAULT_SMS, DIRECTIONS, FEATURES, HIGH_THROUGHPUT, TransportKernel, features, uniform_exchange
from grace_moe.cost.expert_tables import fit_experts
from grace_moe.cost.fitting import Floats, error_of, held_out, relative_fit
from grace_moe.cost.hardware import hardware_of, presets
from grace_moe.cost.profile import MACHINE as PROFILED
from grace_moe.cost.profile import Profile, fit_profile
from grace_moe.cost.tables import Table, groups, machine_of
from grace_moe.cost.transport_fit import fit_coefficients, predicted
from grace_moe.errors import UsageError
from grace_moe.topology import Link, Topology

_US = 1e-6
_DEVICES_PER_NODE = 8.0
"""Of the machines that DeepEP's tables are of, unless they say otherwise (`devices_per_node`)."""
_TOKENS = ((0, 64, "up to 64 tokens"), (64, 1024, "65 to 1,024 tokens"), (1024, np.inf, "over 1,024 tokens"))
_BYTES_OF = {"half": 2.0, "float16": 2.0, "bfloat16": 2.0, "float": 4.0, "float32": 4.0, "int8": 1.0, "fp8": 1.0}


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What tables gave."""

    calibration: Calibration
    links: dict[str, dict[str, Link]]
    """By machine, and by their names in a topology, where tables of collectives or a profile were given."""

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of what was measured."""
        return tuple(sorted({*self.calibration.machines, *self.links}))

    def onto(self, base: Topology, machine: str | None = None) -> tuple[Topology, str]:
        """The base with what was fitted to one machine, and which it is.

        Args:
            machine: None = the only one, or the one that is the base's hardware by its name, or else the first.

        Raises:
            UsageError: nothing was measured on it.
        """
        if machine is not None and machine not in self.machines:
            raise UsageError(f"--machine: {machine!r} is not in the tables; they have {', '.join(self.machines)}")
        named = [name for name in self.machines if _is_of(name, hardware_of(base).name)]
        chosen = machine or (named or list(self.machines))[0]
        links = self.links.get(chosen, {})
        inside, across = links.get("intra_node", base.intra_node), links.get("cross_node", base.cross_node)
        near, far = inside.bandwidth_bytes_per_s, across.bandwidth_bytes_per_s
        own = self.calibration.of(chosen)
        own = replace(own, transports=tuple(replace(k, near_bytes_per_s=near, far_bytes_per_s=far) for k in own.transports))
        hardware = next((name for name in presets() if _is_of(chosen, name)), base.hardware)
        return replace(base, intra_node=inside, cross_node=across, calibration=own.to_dict(), hardware=hardware), chosen


def _is_of(machine: str, hardware: str) -> bool:
    """Whether a machine's name has a preset's among its words: `h200_sxm`, or `NVIDIA H200`, as CUDA names it."""
    return hardware in re.split(r"[^a-z0-9]+", machine.lower())


def calibrate(sources: Sequence[Table | Profile], on_fit: Callable[[str], None] = lambda _: None) -> Calibrated:
    """Fit everything that the tables and profiles tell: each machine, version and kernel on its own.

    Args:
        on_fit: told what was fitted.

    Raises:
        InputFileError: a row that can't be used.
    """
    compute, transports, fits = [], [], []
    links: dict[str, dict[str, Link]] = {}
    for source in sources:
        if isinstance(source, Profile):
            kernel, links[PROFILED], found = fit_profile(source)
            compute.append(kernel)
        elif source.kind == "experts":
            kernels, found = fit_experts(source)
            compute += kernels
        elif source.kind == "nccl":
            of_machine, found = _fit_collectives(source)
            links |= of_machine
        else:
            exchanged, found = _fit_transport(source)
            transports += exchanged
        fits += found
        on_fit(source.source)
    rows = tuple(fit.to_dict() for fit in fits)
    return Calibrated(calibration=Calibration(compute=tuple(compute), transports=tuple(transports), fits=rows), links=links)


def _fit_transport(table: Table) -> tuple[list[TransportKernel], list[Fit]]:
    """Both directions of each machine and version."""
    backend = table.kind
    kernels, fits = [], []
    nodes = table.counts("node_num", 1)
    per_node = table.counts("devices_per_node", _DEVICES_PER_NODE)
    tokens = table.counts("num_token")
    shape = {"tokens": tokens, "top_k": table.counts("num_topk"), "experts": table.counts("num_experts")}
    for (system, device, version), rows in groups(table, "system", "device", "version").items():
        machine = machine_of(system, device)
        for direction in DIRECTIONS:
            sms = table.counts(f"{direction}_sms", DEFAULT_SMS)
            exchange = uniform_exchange(**shape, hidden=table.counts("hidden_size"), nodes=nodes, devices_per_node=per_node, sms=sms)[rows]
            seconds = _seconds(table, direction)[rows]
            kernel = TransportKernel(
                backend=backend,
                direction=direction,
                coefficients={},
                nodes=tuple(sorted({int(count) for count in nodes[rows]})),
                machine=machine,
                version=version,
            )
            columns = np.stack(list(features(backend, exchange).values()), axis=1)
            found = fit_coefficients(backend, columns, seconds, nodes[rows])
            named = {name: float(value) for name, value in zip(FEATURES[backend], found, strict=True) if value > 0}
            kernels.append(replace(kernel, coefficients=named))
            what = f"{direction}, {' '.join(filter(None, (machine, version)))}"
            fits.append(_transport_fit(what, backend, columns, seconds, nodes[rows], tokens[rows]))
    return kernels, fits


def _seconds(table: Table, direction: str) -> Floats:
    """`[rows]` of one direction: what DeepEP's high-throughput kernels notify before they transmit is a part of it."""
    if table.kind == HIGH_THROUGHPUT:
        return (table.positive(f"{direction}_transmit_us") + table.numbers(f"{direction}_notify_us", 0.0)) * _US
    return table.positive(f"{direction}_avg_t_us") * _US


def _transport_fit(what: str, backend: str, columns: Floats, seconds: Floats, nodes: Floats, tokens: Floats) -> Fit:
    def without_others(fitted: npt.NDArray[np.bool_]) -> Floats:
        return predicted(backend, columns, fit_coefficients(backend, columns[fitted], seconds[fitted], nodes[fitted]))

    everything = np.ones(len(seconds), dtype=bool)
    found = without_others(everything)
    counts = sorted({int(count) for count in nodes})
    without = {count: without_others(nodes != count) for count in counts if len(counts) > 1}
    parts = {name: (tokens > low) & (tokens <= high) for low, high, name in _TOKENS}
    parts |= {f"{count} node{'s' * (count > 1)}": nodes == count for count in counts if len(counts) > 1}
    return Fit(
        what=what,
        backend=backend,
        error=error_of(found, seconds),
        held_out=held_out(without_others, seconds),
        regimes={name: error_of(found[part], seconds[part]) for name, part in parts.items() if part.any()},
        without_nodes={str(count): error_of(found[nodes == count], seconds[nodes == count]) for count, found in without.items()},
        left_out=error_of(np.sum([np.where(nodes == count, found, 0.0) for count, found in without.items()], axis=0), seconds)
        if without
        else None,
    )


def _fit_collectives(table: Table) -> tuple[dict[str, dict[str, Link]], list[Fit]]:
    """The links inside nodes: latency, and what each device sends, by how long each collective takes.

    A term of the root of the bytes stands for links that fill up slowly: it is part of the error that is told, and not of the link.
    """
    links: dict[str, dict[str, Link]] = {}
    fits = []
    for (system, device, version, operation), rows in groups(table, "system", "device", "version", "op_name").items():
        count = table.counts("num_gpus")[rows]
        width = np.array([_BYTES_OF.get(str(name), 2.0) for name in table.text("nccl_dtype", "half")[rows]])
        sent = table.positive("message_size")[rows] * width * (count - 1) / count
        columns = np.stack([np.ones(len(rows)), count - 1, np.sqrt(sent), sent], axis=1)
        seconds = table.positive("latency")[rows] * 1e-3
        found = relative_fit(columns, seconds)
        machine = machine_of(system, device)
        fits.append(
            Fit(what=f"{operation}, {' '.join(filter(None, (machine, version)))}", backend="nccl", error=error_of(columns @ found, seconds))
        )
        if operation == "alltoall" and found[-1] > 0:
            links[machine] = {"intra_node": Link(bandwidth_bytes_per_s=1 / float(found[-1]), latency_s=float(found[0]))}
    return links, fits
