"""Which decoder layers have experts, in the words of models' own configs: a table of rules.

Tests compare the answers with the module trees of all families that the installed Transformers builds. Whatever no rule knows is not
guessed: None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from grace_moe.errors import InputFileError

Config = dict[str, Any]
Layers = tuple[int, ...]

_WITH_EXPERTS, _WITHOUT = {"sparse", "moe", "hash_moe"}, {"dense", "mlp"}
_PATTERN_LETTERS = {"E"}
"""Of Nemotron-H's `hybrid_override_pattern`: M Mamba, * attention, - dense, E experts."""

LEADING = ("first_k_dense_replace", "num_dense_layers", "dense_mlp_idx", "moe_layer_start_index")
"""Fields that say how many leading layers are dense."""
EVERY = ("decoder_sparse_step", "moe_layer_interval", "moe_layer_frequency", "interleave_moe_layer_step")
"""Fields of a step s: layers s - 1, 2s - 1, ... have experts."""
SWITCHES = ("is_moe", "enable_moe_block")
"""Fields that say whether there are experts at all."""

LEADING_DENSE = {
    **dict.fromkeys(("afmoe", "axk1", "axk2", "dots3_note", "ernie4_5_moe", "ernie4_5_vl_moe", "exaone_moe"), 1),
    **dict.fromkeys(("glm4_moe", "glm4_moe_lite", "glm4v_moe", "hy_v3", "hy_v4", "kimi_linear", "laguna", "mimo_v2_flash"), 1),
    **dict.fromkeys(("mistral_large4", "unlimited_ocr"), 1),
    **dict.fromkeys(("bailing_hybrid", "flint", "lfm2_moe"), 2),
    **dict.fromkeys(("beam", "deepseek_v3", "deepseek_v32", "glm5_next", "glm_moe_dsa", "step3p5", "step3p7"), 3),
    **dict.fromkeys(
        ("aria", "cohere2_moe", "dbrx", "deepseek_v2", "deepseek_v4", "diffusion_gemma", "doge", "dots1", "flex_olmo", "gemma4"), 0
    ),
    **dict.fromkeys(("gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe"), 0),
    **dict.fromkeys(("inkling", "inkling2", "jetmoe", "kolibri1", "llama4", "longcat_flash", "mellum", "minimax", "minimax_m2"), 0),
    **dict.fromkeys(("minimax_text_01", "minimax_m1", "grok-1"), 0),
    **dict.fromkeys(("minimax_m3_vl", "mistral4", "mixtral", "muse_spark", "olmoe", "openai_privacy_filter", "phimoe"), 0),
    **dict.fromkeys(("qwen2_moe", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_thinker"), 0),
    **dict.fromkeys(("qwen3_omni_moe_talker", "qwen3_vl_moe", "qwen4_exp", "solar_open", "zaya"), 0),
}
"""`model_type` (without `_text`) -> leading dense layers where its config says nothing: the default of its family in Transformers."""


def moe_layers(config: Config, layers: int, source: str) -> Layers | None:
    """The layers of a text model that have experts, ascending; None where no rule knows.

    Args:
        config: the config, of the text model's own fields.
        layers: number of decoder layers.

    Raises:
        InputFileError: a field that is not what it should be, or no layer with experts.
    """
    for field, read in _LISTS.items():
        if config.get(field) is not None:
            told = read(config[field], source, field)
            if told is not None:
                return _checked((i for i in told if i < layers), source, field)
    conditions = [condition for build in _CONDITIONS for condition in build(config, source)]
    leading = _leading(config, source)
    if leading is None:
        if not conditions:
            return None
        leading = 0
    return _checked((i for i in range(leading, layers) if all(holds(i) for holds in conditions)), source, "layers with experts")


def depth(config: Config) -> int | None:
    """Decoder layers that only a list of their kinds tells (Nemotron-H); None where the config has their number."""
    kinds = config.get("hybrid_override_pattern") or config.get("layers_block_type")
    return len(kinds) if kinds and isinstance(kinds, (str, list)) else None


def _checked(layers: Iterable[int], source: str, field: str) -> Layers:
    found = tuple(sorted(set(layers)))
    if not found:
        raise InputFileError(source, field, "no layer has experts", "is it the config of a Mixture-of-Experts model?")
    return found


def _whole(value: Any, source: str, field: str, low: int = 0) -> int:
    if type(value) is not int or not low <= value <= 10_000:
        raise InputFileError(source, field, f"{value!r} is not in {low}..10000", "give the model's own config.json")
    return value


def _of_kinds(value: Any, source: str, field: str) -> list[int] | None:
    """A list of a kind for each layer; None where it tells nothing of experts (layers of attention)."""
    if not isinstance(value, list) or not all(isinstance(kind, str) for kind in value):
        raise InputFileError(source, field, "not a list of kinds of layers", "give the model's own config.json")
    if not any(kind in _WITH_EXPERTS for kind in value):
        if field == "mlp_layer_types" and not set(value) <= _WITHOUT:
            raise InputFileError(source, field, f"{sorted(set(value))[:4]} are not kinds that we know", "give --layers instead of --model")
        return [] if field == "mlp_layer_types" else None
    return [i for i, kind in enumerate(value) if kind in _WITH_EXPERTS]


def _of_letters(value: Any, source: str, field: str) -> list[int]:
    if not isinstance(value, str):
        raise InputFileError(source, field, f"{type(value).__name__} is not text", "give the model's own config.json")
    return [i for i, letter in enumerate(value) if letter in _PATTERN_LETTERS]


def _of_numbers(value: Any, source: str, field: str) -> list[int]:
    """Numbers of layers, as a list or as text `3,4,5`."""
    numbers = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(numbers, list) or not all(type(i) is int or (isinstance(i, str) and i.isdecimal()) for i in numbers):
        raise InputFileError(source, field, "not numbers of layers", "give the model's own config.json")
    return [int(i) for i in numbers]


def _of_flags(value: Any, source: str, field: str) -> list[int] | None:
    """A 0 or 1, or a number of experts, for each layer; None of a single number."""
    if not isinstance(value, list):
        return None
    if not all(type(flag) in (int, bool) for flag in value):
        raise InputFileError(source, field, "not a number for each layer", "give the model's own config.json")
    return [i for i, flag in enumerate(value) if flag]


_LISTS: dict[str, Callable[[Any, str, str], list[int] | None]] = {
    "mlp_layer_types": _of_kinds,
    "hybrid_override_pattern": _of_letters,
    "layers_block_type": _of_kinds,
    "layer_types": _of_kinds,
    "moe_layers": _of_numbers,
    "moe_layers_enum": _of_numbers,
    "moe_layer_freq": _of_flags,
}
"""Fields that name every layer with experts, the most telling first."""


def _in_steps(config: Config, source: str) -> list[Callable[[int], bool]]:
    steps = [_whole(config[field], source, field, 1) for field in EVERY if config.get(field) is not None]
    return [lambda layer: all((layer + 1) % step == 0 for step in steps)] if steps else []


def _in_periods(config: Config, source: str) -> list[Callable[[int], bool]]:
    """DeepSeek's `moe_layer_freq`, and Jamba's period and offset."""
    found: list[Callable[[int], bool]] = []
    if config.get("moe_layer_freq") is not None:
        frequency = _whole(config["moe_layer_freq"], source, "moe_layer_freq", 1)
        found.append(lambda layer: layer % frequency == 0)
    if config.get("expert_layer_period") is not None:
        period = _whole(config["expert_layer_period"], source, "expert_layer_period", 1)
        offset = _whole(config.get("expert_layer_offset", 0), source, "expert_layer_offset")
        found.append(lambda layer: layer % period == offset)
    return found


def _not_listed(config: Config, source: str) -> list[Callable[[int], bool]]:
    if config.get("mlp_only_layers") is None:
        return []
    dense = set(_of_numbers(config["mlp_only_layers"], source, "mlp_only_layers"))
    return [lambda layer: layer not in dense]


def _to_the_end(config: Config, source: str) -> list[Callable[[int], bool]]:
    """ERNIE's last layer with experts: -1 = the last; of text and images where it is a list."""
    value = config.get("moe_layer_end_index")
    if value is None:
        return []
    ends = value if isinstance(value, list) else [value]
    if not ends or not all(type(end) is int for end in ends):
        raise InputFileError(source, "moe_layer_end_index", f"{value!r} is not a layer", "give the model's own config.json")
    return [] if min(ends) < 0 else [lambda layer: layer <= max(ends)]


_CONDITIONS: Sequence[Callable[[Config, str], list[Callable[[int], bool]]]] = (_in_steps, _in_periods, _not_listed, _to_the_end)
"""What each layer with experts meets, all of them together."""


def _leading(config: Config, source: str) -> int | None:
    """Leading dense layers: as the config says, else as its family has them; None where neither tells."""
    for field in LEADING:
        value = config.get(field)
        if value is not None:
            return min(_whole(item, source, field) for item in (value if isinstance(value, list) and value else [value]))
    kind = str(config.get("model_type", "")).removesuffix("_mm_model").removesuffix("_text")
    if kind == "hunyuan" and config.get("moe_layer_num_skipped") is not None:  # Hunyuan-Large; hunyuan_v1_moe skips none
        return _whole(config["moe_layer_num_skipped"], source, "moe_layer_num_skipped")
    return 0 if config.get("mlp_only_layers") is not None else LEADING_DENSE.get(kind)
