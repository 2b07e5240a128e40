"""Options that say how a model is served, for what is told in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from grace_moe.cli.options import FiniteRange
from grace_moe.cost.backends import BACKENDS
from grace_moe.cost.hardware import PHASES
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.cost.step import Setting
from grace_moe.engines import read_model_sizes
from grace_moe.errors import MismatchError
from grace_moe.trace import LoadProfile, RoutingTrace

served_model_option = click.option(
    "--model", "model", type=click.Path(path_type=Path), help="The model's folder or config.json: sizes are read there.  [default: OLMoE's]"
)
phase_option = click.option("--phase", type=click.Choice(PHASES), default="prefill", show_default=True, help="What is served.")
served_phase_option = click.option("--phase", type=click.Choice(PHASES), help="Plan for the time of a layer that serves this.")
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
    type=FiniteRange(0, 1),
    default=0.0,
    metavar="X",
    help="Share of sending that goes on while experts compute: 0 in turn, 1 all that fits.",
)
served_overlap_option = click.option(
    "--overlap",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Plan for time, with this share of sending going on while experts compute.",
)


def served_setting(
    trace: RoutingTrace | LoadProfile, model: Path | None, phase: str | None, batch: int | None, backend: str | None, overlap: float | None
) -> Setting:
    """How a model is served, of options that may be left out.

    Raises:
        UsageError: a backend whose time is not modelled.
        InputFileError, MismatchError: as `served_sizes`.
    """
    return Setting(
        model=served_sizes(model, trace),
        phase=phase or PHASES[0],
        batch_tokens=batch,
        backend=backend or "hierarchical",
        overlap=overlap or 0.0,
    )


def served_sizes(model: Path | None, trace: RoutingTrace | LoadProfile) -> ModelSizes:
    """The sizes that `--model` names; without it OLMoE's, with the trace's experts.

    Raises:
        InputFileError: no config of such a model.
        MismatchError: its experts are not the trace's.
    """
    if model is None:
        top_k = max(1, trace.top_k) if isinstance(trace, RoutingTrace) else OLMOE.top_k
        return replace(OLMOE, num_experts=trace.num_experts, top_k=top_k)
    sizes = read_model_sizes(model)
    if sizes.num_experts != trace.num_experts:
        raise MismatchError(f"--model: {sizes.source} has {sizes.num_experts} experts, but {trace.source} has {trace.num_experts}")
    return sizes
