"""Quantised weights, dequantised as they are read: by hand, by blocks that are cut, and what is refused."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from grace_moe.errors import ModelError
from grace_moe.runtime.model.quantised import dequantised, scaled


def config(**quantization):
    text = SimpleNamespace(quantization_config=quantization or None)
    return SimpleNamespace(quantization_config=quantization or None, get_text_config=lambda: text)


def views(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    handle = safe_open(tmp_path / "model.safetensors", framework="pt")
    return {name: handle.get_slice(name) for name in list(handle.keys())}


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 9),
)
def test_each_value_has_the_scale_of_its_block_also_in_the_cut_ones(sizes, block, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(sizes, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand([-(-size // b) for size, b in zip(sizes, block, strict=True)], generator=generator) + 0.5
    got = scaled(weight, scale, block=block)
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            assert got[i, j] == weight[i, j].float() * scale[i // block[0], j // block[1]]


def test_the_block_is_the_configured_one_where_equal_blocks_would_fit_too(tmp_path):
    """24 rows in blocks of 16 have 2 scales: the second is of 8 rows, not of 12."""
    weight, scale = torch.ones(24, 16).to(torch.float8_e4m3fn), torch.tensor([[2.0], [3.0]])
    tensors = views(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scale})
    plain = dequantised(tensors, config(quant_method="fp8", weight_block_size=[16, 16]), "model")
    assert list(plain) == ["a.weight"]
    assert plain["a.weight"][...][:, 0].tolist() == [2.0] * 16 + [3.0] * 8
    assert plain["a.weight"][14:18, 3:4][:, 0].tolist() == [2.0, 2.0, 3.0, 3.0]


def test_one_scale_one_a_row_and_exponents_in_bytes(tmp_path):
    eights = torch.full((2, 4), 8.0).to(torch.float8_e4m3fn)
    tensors = {
        "one.weight": eights.clone(),
        "one.weight_scale_inv": torch.tensor(0.5),
        "row.weight": eights.clone(),
        "row.weight_scale_inv": torch.tensor([[1.0], [2.0]]),
        "byte.weight": eights.clone(),
        "byte.scale": torch.tensor([[128], [126]], dtype=torch.uint8),
        "one.activation_scale": torch.ones(1),
        "norm.weight": torch.ones(4),
    }
    plain = dequantised(views(tmp_path, tensors), config(quant_method="fp8"), "model")
    assert sorted(plain) == ["byte.weight", "norm.weight", "one.weight", "row.weight"]
    assert plain["one.weight"][...].unique().tolist() == [4.0]
    assert plain["row.weight"][...][:, 0].tolist() == [8.0, 16.0]
    assert plain["byte.weight"][...][:, 0].tolist() == [16.0, 4.0]


def test_two_values_of_four_bits_a_byte(tmp_path):
    """1.5 is code 3, -2 is code 12: low bits first."""
    tensors = {"a.weight": torch.tensor([[0xC3 - 256]], dtype=torch.int8), "a.scale": torch.tensor([[2.0]])}
    plain = dequantised(views(tmp_path, tensors), config(quant_method="fp8"), "model")
    assert plain["a.weight"].get_shape() == [1, 2]
    assert plain["a.weight"][...].tolist() == [[3.0, -4.0]]


def test_some_experts_of_all_are_read_alone(tmp_path):
    weight = torch.arange(12.0).reshape(3, 2, 2).to(torch.float8_e4m3fn)
    tensors = {"experts.up": weight, "experts.up_scale_inv": torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)}
    plain = dequantised(views(tmp_path, tensors), config(quant_method="fp8", weight_block_size=[2, 2]), "model")
    assert plain["experts.up"][2:3].tolist() == [[[24.0, 27.0], [30.0, 33.0]]]


def test_mxfp4_is_read_as_gpt_oss_stores_it(tmp_path):
    """`[experts, out, groups, 16]` bytes become `[experts, in, out]`: code 2 is 1, and the scale of the second row is 4."""
    blocks = torch.full((2, 2, 1, 16), 0x22, dtype=torch.uint8)
    scales = torch.tensor([[[127], [129]]] * 2, dtype=torch.uint8)
    plain = dequantised(views(tmp_path, {"e.w_blocks": blocks, "e.w_scales": scales}), config(quant_method="mxfp4"), "model")
    assert plain["e.w"].get_shape() == [2, 32, 2]
    assert plain["e.w"][1:2].shape == (1, 32, 2)
    assert plain["e.w"][...][0].unique(dim=0).tolist() == [[1.0, 4.0]]


def test_what_can_not_be_undone_is_refused_in_a_line(tmp_path):
    tensors = views(tmp_path, {"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)})
    with pytest.raises(ModelError, match=r"quantization_config: 'awq' can't be placed; give fp8, mxfp4 or plain weights"):
        dequantised(tensors, config(quant_method="awq"), "model")
    with pytest.raises(ModelError, match=r"a\.weight is quantised, and its scale a\.weight_scale_inv is missing"):
        dequantised(tensors, config(quant_method="fp8"), "model")
    tensors |= views(tmp_path, {"a.weight_scale_inv": torch.ones(3, 1)})
    with pytest.raises(ModelError, match=r"a\.weight: \[3, 1\] scales for \[4, 4\] fit no block size"):
        dequantised(tensors, config(quant_method="fp8", weight_block_size=[2, 2]), "model")
    assert dequantised(tensors, config(), "model") is tensors
