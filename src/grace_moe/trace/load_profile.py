"""LoadProfile: how often each expert fired, and nothing of which fired together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_moe.errors import TraceError
from grace_moe.files import MAX_EXPERTS
from grace_moe.trace.counts import rows_of_loads, whole_loads
from grace_moe.trace.names import faults_of_names
from grace_moe.trace.store import write_fields


@dataclass(frozen=True, kw_only=True)
class LoadProfile:
    """What an engine's counters tell of a model's experts: enough to even their load out, not to spare traffic.

    >>> profile = LoadProfile(loads=np.array([[6, 2, 1, 1]]), layer_ids=(0,))
    >>> profile.num_layers, profile.num_experts
    (1, 4)

    Raises:
        TraceError: on construction, if shapes disagree, a load is out of range, or a layer has none.
    """

    loads: npt.NDArray[np.int64]
    """`[layers, experts]` how often each expert fired. Layers need not add up to the same."""
    layer_ids: tuple[int, ...]
    """The model's own numbers of the MoE layers; dense layers are absent."""
    model: str = ""
    """What was counted."""
    dataset: str = ""
    """On which text."""
    source: str = "loads"
    """Where it came from, for messages."""

    def __post_init__(self) -> None:
        loads = self.loads
        if loads.ndim != 2 or loads.dtype != np.int64 or not 1 <= loads.shape[1] <= MAX_EXPERTS or loads.min(initial=0) < 0:
            raise TraceError(self.source, "loads", f"{loads.dtype} {loads.shape} is not [layers, experts] counts", "import them again")
        for fault in faults_of_names(len(loads), self.layer_ids, self.model, self.dataset):
            raise TraceError(self.source, *fault)
        silent = np.flatnonzero(~loads.any(axis=1))
        if len(silent):
            raise TraceError(self.source, "loads", f"none in layer {self.layer_ids[silent[0]]}", "leave the layer out")

    @property
    def num_experts(self) -> int:
        """Experts of each layer."""
        return int(self.loads.shape[1])

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.loads.shape[0])

    @property
    def digest(self) -> str:
        """First 16 hex digits of a SHA-256 over loads and layers: names the profile in a provenance."""
        return hashlib.sha256(f"{self.loads.shape}|{list(self.layer_ids)}".encode() + self.loads.tobytes()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write it whole, or nothing, as a `grace-moe.trace` file of counts (docs/formats.md)."""
        whole, _ = whole_loads(self.loads.astype(np.float64))
        names = {name: getattr(self, name) for name in ("num_experts", "layer_ids", "model", "dataset")}
        write_fields({"topk_ids": rows_of_loads(whole), "counts_only": True, **names}, Path(path))


def mixed_loads(profiles: list[LoadProfile]) -> LoadProfile:
    """One profile in which several of the same model weigh the same in each layer. A single one is given back as it is.

    Raises:
        TraceError: different models, experts or layers.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if (other.num_experts, other.layer_ids) != (first.num_experts, first.layer_ids):
            raise TraceError(other.source, "loads", f"of other experts or layers than those of {first.source}", "join loads of one model")
        if other.model != first.model and other.model and first.model:
            raise TraceError(other.source, "model", f"{other.model!r}, but {first.source} has {first.model!r}", "join loads of one model")
    if len(profiles) == 1:
        return first
    shares = [profile.loads / profile.loads.sum(axis=1, keepdims=True) for profile in profiles]
    most = max(int(profile.loads.sum(axis=1).max()) for profile in profiles)
    loads, _ = whole_loads(np.sum(shares, axis=0) * most)
    names = {name: " + ".join(dict.fromkeys(getattr(profile, name) for profile in profiles)) for name in ("dataset", "source")}
    model = next((profile.model for profile in profiles if profile.model), "")
    return LoadProfile(loads=loads, layer_ids=first.layer_ids, model=model, **names)
