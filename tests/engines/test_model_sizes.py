"""Sizes of experts in the words of many configs."""

import json

import pytest

from grace_moe.engines import read_model_sizes
from grace_moe.errors import InputFileError

BASE = {"num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 128}

CASES = [
    ({"model_type": "mixtral"}, (64, 128, 2.0)),
    ({"model_type": "mixtral", "torch_dtype": "float32"}, (64, 128, 4.0)),
    ({"model_type": "qwen3_moe", "moe_intermediate_size": 32}, (64, 32, 2.0)),
    ({"model_type": "deepseek_v3", "moe_intermediate_size": 32, "quantization_config": {"quant_method": "fp8"}}, (64, 32, 1.0)),
    ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, (64, 128, 0.53125)),
    ({"model_type": "mixtral", "quantization_config": {"quant_method": "awq", "bits": 4}}, (64, 128, 0.5)),
    (
        {"model_type": "mixtral", "quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}},
        (64, 128, 1.0),
    ),
]


@pytest.mark.parametrize(("change", "sizes"), CASES)
def test_sizes(tmp_path, change, sizes):
    (tmp_path / "config.json").write_text(json.dumps(BASE | change))
    found = read_model_sizes(tmp_path)
    assert (found.hidden_size, found.expert_size, found.weight_bytes) == sizes
    assert (found.num_experts, found.top_k) == (8, 2)
    assert found.expert_bytes == 3 * found.hidden_size * found.expert_size * found.weight_bytes


def test_a_size_that_is_missing(tmp_path):
    config = {name: value for name, value in BASE.items() if name != "hidden_size"} | {"model_type": "mixtral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputFileError, match="hidden_size or d_model or n_embd: missing"):
        read_model_sizes(tmp_path)
