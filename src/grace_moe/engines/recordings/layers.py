"""The model's own numbers of a dump's layers, and which of them have experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_moe.engines.recordings.imported import Hints
from grace_moe.engines.recordings.notes import counted, several
from grace_moe.errors import TraceError, UsageError
from grace_moe.files import MAX_LAYER_ID


def numbers_of_rows(rows: int, hints: Hints, source: str, own: Sequence[int] | None = None) -> tuple[int, ...]:
    """The model's number of each layer of a dump.

    Args:
        own: the numbers that the dump gives. Without them, as many layers as the model has experts in are those (unless it has as many
            in all), and others are the decoder's, from 0.

    Raises:
        TraceError: `own` are not numbers of so many layers.
        UsageError: fewer layers than the model has, and neither it nor its config says which.
    """
    if own is not None:
        numbers = tuple(int(number) for number in own)
        if len(numbers) != rows or len(set(numbers)) != rows or not all(0 <= number <= MAX_LAYER_ID for number in numbers):
            problem = f"{list(numbers)[:9]} are not the numbers of {rows} layers, each in 0..{MAX_LAYER_ID}"
            raise TraceError(source, "layer_ids", problem, "give the model's own numbers of its layers")
        return numbers
    wanted = hints.layer_ids
    if wanted is not None and rows == len(wanted) and rows != hints.num_hidden_layers and wanted != tuple(range(rows)):
        return wanted
    if wanted is None and rows < (hints.num_hidden_layers or 0):
        of = f"{several(rows, 'layer')} of the model's {hints.num_hidden_layers}"
        raise UsageError(f"{source}: {of}, and neither it nor the model's config tells which have experts; give --layers")
    return tuple(range(rows))


def choose_layers(
    numbers: Sequence[int], recorded: npt.NDArray[np.bool_], hints: Hints, source: str, *, own: bool = False
) -> tuple[list[int], tuple[int, ...], tuple[str, ...]]:
    """The rows of a dump that are layers with experts and have anything recorded.

    Args:
        numbers: the model's number of each row.
        recorded: `[rows]` whether a row has a choice or a count.
        own: whether the dump gave the numbers: layers that it leaves out then recorded nothing.

    Returns:
        Their rows, their numbers, and what was left out or assumed.

    Raises:
        TraceError: none has anything.
        UsageError: `hints.layer_ids` names a layer that the dump doesn't have.
    """
    row_of = {number: row for row, number in enumerate(numbers)}
    wanted = tuple(numbers) if hints.layer_ids is None else hints.layer_ids
    absent = [number for number in wanted if number not in row_of]
    if not wanted or (absent and (not own or not set(numbers) <= set(wanted))):
        raise UsageError(
            f"{source}: it has {_named(numbers)}, and the layers with experts are given as {_brief(wanted)}; check them (--layers)"
        )
    kept = tuple(number for number in wanted if number in row_of and recorded[row_of[number]])
    if not kept:
        raise TraceError(source, "layers", "none has a token that chose an expert", "record a Mixture-of-Experts model")
    silent = [number for number in wanted if number not in kept]
    if not silent:
        return [row_of[number] for number in kept], kept, ()
    if hints.layer_ids is None:
        note = f"layers {_brief(silent)} never chose: taken as dense (--layers says otherwise)"
    else:
        left_out = f"{counted(len(silent), 'is', 'are')} left out: {_brief(silent)}"
        note = f"{several(len(silent), 'layer')} with experts recorded nothing and {left_out}"
    return [row_of[number] for number in kept], kept, (note,)


def _named(numbers: Sequence[int]) -> str:
    whole = tuple(numbers) == tuple(range(len(numbers)))
    return f"decoder layers 0..{len(numbers) - 1}" if whole else f"layers {_brief(numbers)}"


def _brief(numbers: Sequence[Any]) -> str:
    return ", ".join(map(str, numbers[:9])) + (f" and {len(numbers) - 9} more" if len(numbers) > 9 else "")
