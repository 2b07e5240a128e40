"""Which layers have experts: against the module trees of all MoE families of Transformers, and configs as they are published."""

import json

import pytest

from grace_moe.engines.models.layer_rules import _LISTS, EVERY, LEADING, moe_layers
from grace_moe.engines.models.model_config import shape_of_config
from grace_moe.errors import InputFileError

pytest.importorskip("transformers")
from tests.engines.families import config_of, layers_with_experts, moe_types

LAYERS = 8
TELLS = {*LEADING, *EVERY, *_LISTS, "mlp_only_layers", "moe_layer_end_index", "expert_layer_period", "expert_layer_offset"}
TWO_STACKS = {"nllb-moe", "switch_transformers"}
WITHOUT_DEFAULT = {"jamba", "nemotron_h", "lfm2_moe", "deepseek_ocr2", "deepseek_ocr2_text"}
"""Families whose config always says which layers have experts."""


def small(kind):
    """A config of few layers, where its family takes their number, and what it is as JSON."""
    try:
        config = config_of(kind, num_hidden_layers=LAYERS)
    except Exception:  # a family whose lists of layers fix their number, or whose defaults are not valid
        try:
            config = config_of(kind)
        except Exception as error:
            pytest.skip(f"Transformers makes no config of {kind}: {error}")
    return config, json.loads(config.to_json_string())


@pytest.mark.parametrize("kind", moe_types())
def test_every_family_has_experts_where_its_modules_have_them(kind):
    config, told = small(kind)
    if kind in TWO_STACKS:
        with pytest.raises(InputFileError, match="an encoder and a decoder"):
            shape_of_config(told, "config.json")
        return
    text = config.get_text_config()
    truth = layers_with_experts(text)
    if truth is None:
        pytest.skip(f"Transformers builds no {kind} from its defaults")
    assert shape_of_config(told, "config.json").moe_layer_ids == truth
    if kind not in WITHOUT_DEFAULT:
        bare = {name: value for name, value in json.loads(text.to_json_string()).items() if name not in TELLS}
        assert moe_layers(bare, text.num_layers if kind == "longcat_flash" else text.num_hidden_layers, "bare") == truth


def test_the_sweep_sees_the_families():
    assert len(moe_types()) >= 60


PUBLISHED = [
    ("llama4_text", {"interleave_moe_layer_step": 2}),
    ("llama4_text", {"moe_layers": [2, 5]}),
    ("step3p5", {"moe_layers_enum": "3,4,6"}),
    ("step3p5", {"moe_layers_enum": [1, 2]}),
    ("afmoe", {"num_dense_layers": 3}),
    ("nemotron_h", {"hybrid_override_pattern": "MEM*E-ME"}),
    ("deepseek_v4", {"num_hash_layers": 2}),
    ("deepseek_v3", {"first_k_dense_replace": 1, "moe_layer_freq": 1}),
    ("axk1", {"first_k_dense_replace": 2, "moe_layer_freq": 3}),
    ("minimax_m3_vl_text", {"moe_layer_freq": [0, 0, 1, 1, 1, 0, 1, 1]}),
    ("inkling_text", {"dense_mlp_idx": 2}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 6, "moe_layer_interval": 2}),
    ("jamba", {"expert_layer_period": 3, "expert_layer_offset": 2}),
    ("glm_moe_dsa", {"first_k_dense_replace": 4}),
    ("kimi_linear", {"first_k_dense_replace": 2}),
    ("hunyuan_v1_moe", {"moe_topk": [2] * 8}),
    ("longcat_flash", {"num_layers": 5}),
]


@pytest.mark.parametrize(("kind", "fields"), PUBLISHED)
def test_configs_as_they_are_published(kind, fields):
    """With the fields that hubs' configs have, which Transformers reads and writes no more."""
    depth = {} if kind in ("nemotron_h", "longcat_flash") else {"num_hidden_layers": LAYERS}
    config = config_of(kind, **depth, **fields)
    tells = {name: value for name, value in json.loads(config.to_json_string()).items() if name not in TELLS}
    assert shape_of_config(tells | depth | fields, "config.json").moe_layer_ids == layers_with_experts(config)


HELD = {"num_hidden_layers": 6, "num_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"model_type": "arctic", "moe_layer_frequency": 2}, (1, 3, 5)),
        ({"model_type": "lfm2_moe", "num_dense_layers": 2}, (2, 3, 4, 5)),
        ({"model_type": "hunyuan", "moe_layer_num_skipped": 1}, (1, 2, 3, 4, 5)),
        ({"model_type": "ernie4_5_moe_vl", "moe_layer_start_index": [1, 1], "moe_layer_end_index": [5, 4]}, (1, 2, 3, 4, 5)),
        ({"model_type": "mixtral"}, (0, 1, 2, 3, 4, 5)),
        ({"model_type": "a_model_to_come"}, None),
        ({}, None),
    ],
)
def test_families_that_transformers_does_not_build_alone(fields, layers):
    assert shape_of_config(HELD | fields, "config.json").moe_layer_ids == layers


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mlp_layer_types": ["dense"] * 6}, "no layer has experts"),
        ({"mlp_layer_types": ["dense", "other"]}, "are not kinds that we know"),
        ({"mlp_layer_types": 3}, "not a list of kinds"),
        ({"hybrid_override_pattern": "MM"}, "no layer has experts"),
        ({"moe_layers_enum": "a,b"}, "not numbers of layers"),
        ({"moe_layer_freq": ["1"]}, "not a number for each layer"),
        ({"first_k_dense_replace": -1}, "-1 is not in 0"),
        ({"decoder_sparse_step": 0}, "0 is not in 1"),
        ({"moe_layer_end_index": "x"}, "'x' is not a layer"),
        ({"is_moe": False}, "false"),
        ({"num_experts": [4, 8]}, r"\[4, 8\] is not in"),
    ],
)
def test_fields_that_are_no_rule(fields, says):
    with pytest.raises(InputFileError, match=says):
        shape_of_config(HELD | fields, "config.json")
