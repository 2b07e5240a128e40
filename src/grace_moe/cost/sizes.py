"""What a model's expert weighs, computes and receives: sizes that turn copies and pairs into bytes and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a MoE layer; `engines.read_model_sizes` reads them from a `config.json`."""

    num_experts: int
    top_k: int
    hidden_size: int
    """Elements of a hidden state."""
    expert_size: int
    """Elements of an expert's intermediate state."""
    weight_bytes: float = 2.0
    """Bytes of a weight: 2 in bf16, 1 in fp8, 0.5625 in 4 bits with a scale for every 16."""
    hidden_element_bytes: float = 2.0
    """Bytes of an element of a hidden state on the wire."""
    num_matrices: int = 3
    """Of an expert: gate, up and down."""
    moe_layers: int | None = None
    """Layers with experts; None = not known."""
    source: str = "model"
    """Where the sizes are from, for messages."""

    @property
    def expert_bytes(self) -> float:
        """Weights of one expert of one layer."""
        return self.num_matrices * self.hidden_size * self.expert_size * self.weight_bytes

    @property
    def pair_flops(self) -> float:
        """What one (token, expert) pair computes: a multiplication and an addition for each weight."""
        return 2.0 * self.num_matrices * self.hidden_size * self.expert_size

    @property
    def hidden_bytes(self) -> float:
        """One hidden state."""
        return self.hidden_size * self.hidden_element_bytes


OLMOE = ModelSizes(num_experts=64, top_k=8, hidden_size=2048, expert_size=1024, moe_layers=16, source="OLMoE-1B-7B (assumed)")
"""What is assumed where no model is given."""
