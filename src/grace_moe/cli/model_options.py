"""What a user tells of a model that a dump or a placement does not: shared by `import` and `export`."""

from __future__ import annotations

from pathlib import Path

import click

from grace_moe.engines import Hints, ModelShape, read_model_shape
from grace_moe.errors import UsageError, printable

MAX_LAYER = 9_999

model_option = click.option(
    "--model", "model", type=click.Path(path_type=Path), help="The model's folder or config.json: layers, experts and k are read there."
)
hidden_layers_option = click.option("--num-hidden-layers", type=click.IntRange(min=1), metavar="N", help="Decoder layers, dense ones too.")


def layer_numbers(option: str, text: str) -> tuple[int, ...]:
    """`"1-3,7"` as (1, 2, 3, 7). Raises UsageError that names the option."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) > MAX_LAYER:
            raise UsageError(f"{option}: {part.strip()!r} is not a layer or a range of layers; write it like 1-26 or 0,2,5")
        found += range(int(first), int(last or first) + 1)
    if not found or len(set(found)) != len(found):
        raise UsageError(f"{option}: {text!r} names no layer, or one twice; write it like 1-26 or 0,2,5")
    return tuple(sorted(found))


def read_hints(
    model: Path | None,
    *,
    num_experts: int | None = None,
    top_k: int | None = None,
    num_hidden_layers: int | None = None,
    layers: str | None = None,
    skip_tokens: int = 0,
    name: str = "",
    dataset: str = "",
) -> tuple[Hints, ModelShape | None]:
    """What the options say of the model; an option overrules the config."""
    shape = None if model is None else read_model_shape(model)
    known = Hints() if shape is None else Hints.of(shape)
    folder = "" if model is None else (model if model.is_dir() else model.parent).resolve().name
    return (
        Hints(
            num_experts=known.num_experts if num_experts is None else num_experts,
            top_k=known.top_k if top_k is None else top_k,
            num_hidden_layers=known.num_hidden_layers if num_hidden_layers is None else num_hidden_layers,
            layer_ids=known.layer_ids if layers is None else layer_numbers("--layers", layers),
            skip_tokens=skip_tokens,
            model=name or printable(folder),
            dataset=dataset,
        ),
        shape,
    )
