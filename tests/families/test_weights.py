"""Every parameter that we read of a checkpoint is what plain Transformers loads of it; and what is not is found."""

from copy import copy
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from grace_moe.errors import ModelError
from grace_moe.runtime.model.accounting import check_dense_weights
from grace_moe.runtime.model.loading import load_whole_model
from grace_moe.runtime.model.opening import open_model
from grace_moe.runtime.model.source import weights_of
from tests.families.tiny import build

FAMILIES = ("kimi_linear", "minimax_m3_vl", "step3p7", "qwen3_vl_moe", "ernie4_5_vl_moe", "inkling", "granitemoe", "gpt_oss", "dbrx")
PICKED = (5, 0, 3)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    folder = build(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return open_model(str(folder)), load_whole_model(str(folder)).state_dict()


def test_every_parameter_is_what_transformers_loads(loaded):
    source, state = loaded
    weights = weights_of(source)
    assert {name for name in weights if name not in source.conversion.left_over} <= set(state)
    for name, view in weights.items():
        if name in state:
            assert list(view.get_shape()) == list(state[name].shape)
            assert torch.equal(view[...].to(state[name].dtype), state[name]), name
            if state[name].ndim:
                middle = slice(1, max(1, len(state[name]) - 1))
                assert torch.equal(view[middle].to(state[name].dtype), state[name][middle]), name


def test_some_experts_in_any_order_are_theirs_alone(loaded):
    source, state = loaded
    weights = weights_of(source, dict.fromkeys(source.layers, PICKED))
    for name in source.layer_of_parameter:
        whole = state[name].unflatten(0, (source.num_experts, source.rows))
        assert torch.equal(weights[name][...].to(whole.dtype), whole[list(PICKED)].flatten(0, 1)), name


def test_a_dense_weight_that_is_not_the_checkpoints_is_found(loaded):
    """Two rows in each other's place, as a wrong concatenation gives them."""
    source, state = loaded
    weights = weights_of(source)
    dense = next(name for name, value in state.items() if name in weights and name not in source.layer_of_parameter and value.ndim == 2)
    wrong = copy(state)
    wrong[dense] = state[dense].flip(0)
    check_dense_weights(SimpleNamespace(state_dict=lambda: state), weights, source)
    with pytest.raises(ModelError, match="not as in the checkpoint after loading"):
        check_dense_weights(SimpleNamespace(state_dict=lambda: wrong), weights, source)
