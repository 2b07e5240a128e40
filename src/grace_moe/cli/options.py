"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import inspect
import json
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from grace_moe.cost.sent import SENDS
from grace_moe.errors import InputFileError, UsageError
from grace_moe.evaluation import parse_method
from grace_moe.files import read_bytes
from grace_moe.planning import METHODS, plan
from grace_moe.topology import Topology
from grace_moe.trace import LoadProfile, RoutingTrace, mixed, mixed_recordings, read_recording

MAX_TEXT_BYTES = 2**30
"""Of a file of text to run a model on."""


class FiniteRange(click.FloatRange):
    """Of numbers; click's own takes `nan`, which is in every range, and `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click's, and finite."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that is finite.", param, ctx)
        return number


def _redundancy(context: click.Context, option: click.Parameter, text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--redundancy: {text!r} is neither a number nor auto; write 1.25, or auto") from error


traces_argument = click.argument("trace_paths", metavar="TRACE...", nargs=-1, required=True, type=click.Path(path_type=Path))
topology_option = click.option(
    "--topology", "topology_text", type=click.Path(), required=True, metavar="T", help="NxG, NxG:preset, or a topology file."
)
redundancy_option = click.option(
    "--redundancy", callback=_redundancy, metavar="X", help="Slots in all over experts, such as 1.25; auto = the least that fits."
)
slots_option = click.option(
    "--slots-per-device", type=click.IntRange(min=1), metavar="S", help="Most experts a device may hold in a layer."
)
expert_bytes_option = click.option(
    "--expert-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Bytes of one expert of one layer (plans keep to the topology's memory_bytes).",
)
eval_option = click.option(
    "--eval", "eval_path", type=click.Path(path_type=Path), help="Trace to measure on.  [default: half of TRACE's requests]"
)
split_option = click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Draw TRACE's halves at random, by this seed.  [default: every second request]",
)
backend_option = click.option(
    "--backend",
    metavar="NAME",
    help=f"How the engine sends tokens: {', '.join(SENDS)}.  [default: one copy a node, as hierarchical]",
)
methods_option = click.option("--methods", help="Comma-separated.  [default: all]")
seed_option = click.option("--seed", type=int, default=0, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


ARGUMENTS_OF_PLAN = tuple(p.name for p in inspect.signature(plan).parameters.values() if p.kind is not p.VAR_KEYWORD)
"""Arguments that `plan` takes for every method, which are no option of a method."""


def shared(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def method_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("r=0.15", "replication=none")` as keyword arguments; values are read as JSON, else as text.

    Raises:
        UsageError: a pair without `=`, a value that is a list or an object, or an argument with an option of its own.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--option: {pair!r} is not NAME=VALUE; write it like r=0.15")
        if name in ARGUMENTS_OF_PLAN:
            mend = "leave it out" if name in ("trace", "progress", "setting") else f"give --{name.replace('_', '-')}"
            raise UsageError(f"--option: {name} is not an option of a method; {mend}")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(f"--option: {name}={text!r} is not a number or a word; write it like r=0.15")
        options[name] = value
    return options


def chosen_methods(text: str | None) -> tuple[str, ...]:
    """The methods that `--methods` names, each once; all without it. Raises UsageError where one is unknown."""
    chosen = METHODS if text is None else tuple(dict.fromkeys(m.strip() for m in text.split(",")))
    for method in chosen:
        try:
            parse_method(method)
        except UsageError as error:
            raise UsageError(f"--methods: {error}") from error
    return chosen


def read_recordings(paths: Sequence[Path]) -> RoutingTrace | LoadProfile:
    """TRACE... of tokens or of counts, mixed (`trace.mixed_recordings`). Raises UsageError where one is named twice."""
    return mixed_recordings([read_recording(path) for path in _named_once(paths)])


def read_traces(paths: Sequence[Path]) -> RoutingTrace:
    """TRACE... of tokens, mixed (`trace.mixed`). Raises UsageError where one is named twice, TraceError where one has counts only."""
    return mixed([RoutingTrace.load(path) for path in _named_once(paths)])


def _named_once(paths: Sequence[Path]) -> Sequence[Path]:
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise UsageError(f"{path} is named twice; traces weigh the same, so name each once")
    return paths


def read_compared(
    paths: Sequence[Path], topology_text: str, eval_path: Path | None, split_seed: int | None
) -> tuple[RoutingTrace, Topology, RoutingTrace | None]:
    """What to plan on of TRACE..., `--topology`, and what to measure on (`parted`)."""
    trace, topology = read_traces(paths), Topology.parse(topology_text)
    planned_on, measure_on = parted(trace, eval_path, split_seed)
    return planned_on, topology, measure_on


def parted(trace: RoutingTrace, eval_path: Path | None, split_seed: int | None) -> tuple[RoutingTrace, RoutingTrace | None]:
    """What to plan on, and what to measure on, by `--eval` or `--split-seed`; None = every second request. Raises UsageError at both."""
    if eval_path is not None and split_seed is not None:
        raise UsageError("--split-seed: of TRACE's halves, and --eval measures on another trace; give one of them")
    if split_seed is not None:
        return trace.split_requests(split_seed)
    return trace, None if eval_path is None else RoutingTrace.load(eval_path)


def numbers(option: str, text: str, low: float, high: float, meaning: str) -> tuple[float, ...]:
    """A comma-separated list of numbers from `low` to `high`, each once. Raises UsageError that names the option and the range."""
    found = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise UsageError(f"{option}: {part.strip()!r} is not a number {meaning}")
        found.append(number)
    return tuple(dict.fromkeys(found))


def budgets(option: str, text: str, devices: int) -> tuple[float, ...]:
    """A comma-separated list of redundancies, each from 1 to the number of devices."""
    return numbers(option, text, 1, devices, f"from 1 (no replicas) to {devices} (every expert on all devices)")


def command_line() -> str:
    """The running command as a shell would take it: its arguments and what differs from the defaults, less `--json`."""
    context = click.get_current_context()
    words = ["grace-moe", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or parameter.name == "as_json" or (parameter.name and value == parameter.get_default(context)):
            continue
        for given in value if isinstance(value, tuple) else (value,):
            words += [str(given)] if isinstance(parameter, click.Argument) else [parameter.opts[0], str(given)]
    return shlex.join(words)


def read_text(path: Path, option: str = "--text") -> str:
    """The text of a file; bytes that are not UTF-8 become replacement characters. Raises UsageError where it can't be read."""
    try:
        return read_bytes(path, InputFileError, MAX_TEXT_BYTES).decode(errors="replace")
    except InputFileError as error:
        problem = str(error).removeprefix(f"{path}: ").removeprefix("file: ")
        raise UsageError(f"{option}: {path}: {problem}") from error
