"""Options that say how a model is served, for what is told in milliseconds."""

from __future__ import annotations

from pathlib import Path

import click

from grace_moe.cost.backends import BACKENDS
from grace_moe.cost.hardware import PHASES
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.engines import read_model_sizes

served_model_option = click.option(
    "--model", "model", type=click.Path(path_type=Path), help="The model's folder or config.json: sizes are read there.  [default: OLMoE's]"
)
phase_option = click.option("--phase", type=click.Choice(PHASES), default="prefill", show_default=True, help="What is served.")
batch_option = click.option(
    "--batch",
    "batch",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Of a batch over all devices.  [default: 32768, in decode 1024]",
)
backend_option = click.option(
    "--backend", type=click.Choice(list(BACKENDS)), default="hierarchical", show_default=True, help="What sends tokens to experts."
)
overlap_option = click.option(
    "--overlap",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="X",
    help="Share of sending that goes on while experts compute: 0 in turn, 1 all that fits.",
)


def served_sizes(model: Path | None) -> ModelSizes:
    """The sizes that `--model` names, or OLMoE's."""
    return OLMOE if model is None else read_model_sizes(model)


def setting_of(model: Path | None, phase: str, batch: int | None, backend: str, overlap: float) -> Setting:
    """What the options say."""
    return Setting(model=served_sizes(model), phase=phase, batch_tokens=batch, backend=backend, overlap=overlap)
