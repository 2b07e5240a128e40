"""Layers and experts as models' own configs say them, checked against Transformers where it knows the rule."""

import json

import pytest

from grace_moe.engines import read_model_shape
from grace_moe.errors import InputFileError

BASE = {"num_hidden_layers": 6, "num_experts": 8, "num_experts_per_tok": 2}


def shape_of(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_model_shape(tmp_path)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"model_type": "mixtral"}, (0, 1, 2, 3, 4, 5)),
        ({"first_k_dense_replace": 2}, (2, 3, 4, 5)),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, (2, 4)),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 1]}, (1, 2, 4, 5)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [5]}, (1, 3)),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "dense", "sparse"]}, (1, 2, 3, 5)),
        ({"moe_layers": [1, 3, 5]}, (1, 3, 5)),
        ({"moe_layer_interval": 2, "moe_layer_start_index": 2, "moe_layer_end_index": 5}, (3, 5)),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, (1, 3, 5)),
    ],
)
def test_which_layers_have_experts(tmp_path, config, layers):
    assert shape_of(tmp_path, BASE | config).moe_layer_ids == layers


def test_the_words_of_other_models(tmp_path):
    shape = shape_of(tmp_path, {"text_config": {"num_hidden_layers": 2, "n_routed_experts": 4, "moe_k": 3, "num_nextn_predict_layers": 1}})
    assert (shape.num_experts, shape.top_k, shape.num_hidden_layers, shape.num_draft_layers) == (4, 3, 2, 1)


@pytest.mark.parametrize("name", ["DeepseekV3Config", "Qwen3MoeConfig", "OlmoeConfig", "MixtralConfig", "GptOssConfig", "Glm4MoeConfig"])
def test_it_reads_what_transformers_writes(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name)()
    config.save_pretrained(tmp_path)
    shape = read_model_shape(tmp_path)
    assert shape.num_hidden_layers == config.num_hidden_layers
    assert shape.top_k == config.num_experts_per_tok
    dense = getattr(config, "first_k_dense_replace", 0) if name != "Qwen3MoeConfig" else 0
    assert shape.moe_layer_ids == tuple(range(dense, config.num_hidden_layers))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hidden_layers": 2}, "n_routed_experts or num_experts or num_local_experts: missing"),
        (BASE | {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is not in"),
        (BASE | {"num_experts": "8"}, "num_experts: '8' is not in"),
        ([], "not an object"),
    ],
)
def test_other_files_are_refused(tmp_path, config, says):
    with pytest.raises(InputFileError, match=says):
        shape_of(tmp_path, config)
