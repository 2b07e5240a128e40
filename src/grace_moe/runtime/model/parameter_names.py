"""What the names of a model's parameters and modules tell: the layer, and which expert a tensor is of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from grace_moe.errors import ModelError

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
_ONE_EXPERT = re.compile(r"^(?P<stem>.*\.experts)\.(?P<expert>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True, kw_only=True)
class ExpertTensor:
    """A checkpoint's tensor of one expert: `{stem}.{expert}.{rest}`, such as `model.layers.3.mlp.experts.5.up_proj.weight`."""

    stem: str
    expert: int
    rest: str

    def in_slot(self, slot: int) -> str:
        """The name that the tensor has where its expert stands in `slot`."""
        return f"{self.stem}.{slot}.{self.rest}"


def layer_number(name: str) -> int:
    """The layer's own number in a parameter or module name such as `model.layers.3.mlp.experts.down_proj`.

    Raises:
        ModelError: the name has none.
    """
    match = _LAYER.search(name + ".")
    if match is None:
        raise ModelError(f"{name}: no layer number in the name; this architecture is not supported yet")
    return int(match[1])


def expert_tensor(name: str) -> ExpertTensor | None:
    """The parts of a checkpoint name that is of one expert; None for every other name."""
    match = _ONE_EXPERT.match(name)
    return None if match is None else ExpertTensor(stem=match["stem"], expert=int(match["expert"]), rest=match["rest"])
