"""What the names of a model's parameters and modules tell: the layer."""

from __future__ import annotations

import re

from grace_moe.errors import ModelError

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")


def layer_number(name: str) -> int:
    """The layer's own number in a parameter or module name such as `model.layers.3.mlp.experts.down_proj`.

    Raises:
        ModelError: the name has none.
    """
    match = _LAYER.search(name + ".")
    if match is None:
        raise ModelError(f"{name}: no layer number in the name; this architecture is not supported yet")
    return int(match[1])


def layer_of(name: str, *, otherwise: int) -> int:
    """The same, or `otherwise` where the name has none."""
    match = _LAYER.search(name + ".")
    return otherwise if match is None else int(match[1])
