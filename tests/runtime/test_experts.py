"""Experts computed slot by slot equal each architecture's own eager module."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from grace_moe.runtime.dispatch import Received
from grace_moe.runtime.model.experts import compute_by_slot, computes_by_slot

HIDDEN, SLOTS, TOP_K = 8, 5, 3


def experts_of(architecture: str, dtype=torch.float32) -> torch.nn.Module:
    """The experts module of a tiny configuration, of random weights and biases."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 6, "moe_intermediate_size": 6}
    module = {
        "Olmoe": ("olmoe", {"num_experts": SLOTS}),
        "GptOss": ("gpt_oss", {"num_local_experts": SLOTS}),
        "NemotronH": ("nemotron_h", {"n_routed_experts": SLOTS}),
    }[architecture]
    models = getattr(transformers.models, module[0])
    config = getattr(models, f"{architecture}Config")(**sizes | module[1])
    config._experts_implementation = "eager"
    experts = getattr(getattr(models, f"modeling_{module[0]}"), f"{architecture}Experts")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return experts.to(dtype)


def pair_by_pair(experts: torch.nn.Module, received: Received) -> torch.Tensor:
    sums = torch.zeros(received.hidden_RH.shape)
    for r, slots in enumerate(received.slots_RK.tolist()):
        for k, slot in enumerate(slots):
            if slot >= 0:
                one = torch.tensor([[slot]]), received.weights_RK[r : r + 1, k : k + 1]
                sums[r] += experts(received.hidden_RH[r : r + 1], *one)[0]
    return sums


@pytest.mark.parametrize("architecture", ["Olmoe", "GptOss", "NemotronH"])
@given(rows=st.integers(0, 9), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_every_layout_equals_its_own_module(architecture, rows, seed):
    """Plain, transposed with biases and clamped gate, and without a gate; rows that name no slot, and slots that no row names."""
    experts, generator = experts_of(architecture), torch.Generator().manual_seed(seed)
    order = torch.rand(rows, 2 * SLOTS, generator=generator).argsort(dim=1)[:, :TOP_K]
    received = Received(
        hidden_RH=torch.randn(rows, HIDDEN, generator=generator),
        slots_RK=torch.where(order < SLOTS, order, -1),
        weights_RK=torch.rand(rows, TOP_K, generator=generator),
    )
    assert computes_by_slot(experts, received)
    torch.testing.assert_close(compute_by_slot(experts, received), pair_by_pair(experts, received), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_is_summed_in_float32():
    """All slots the same expert, weight 1 each: the sum is exact where adding in bfloat16 would round."""
    experts = experts_of("Olmoe", torch.bfloat16)
    for parameter in experts.parameters():
        parameter.copy_(parameter[0].expand_as(parameter))
    hidden = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    slots = torch.tensor([[2, 0, 4]]).repeat(4, 1)
    once = compute_by_slot(experts, Received(hidden_RH=hidden, slots_RK=slots[:, :1], weights_RK=torch.ones(4, 1)))
    thrice = compute_by_slot(experts, Received(hidden_RH=hidden, slots_RK=slots, weights_RK=torch.ones(4, 3)))
    assert torch.equal(thrice, (once.float() * 3).to(torch.bfloat16))


def test_what_it_can_not_serve_stays_with_transformers():
    experts = experts_of("Olmoe")
    received = Received(hidden_RH=torch.zeros(1, HIDDEN), slots_RK=torch.zeros(1, 1, dtype=torch.int64), weights_RK=torch.ones(1, 1))
    assert not computes_by_slot(experts, received)  # gradients
    with torch.no_grad():
        assert computes_by_slot(experts, received)
        assert not computes_by_slot(experts.to(torch.bfloat16), received)
        assert not computes_by_slot(torch.nn.Linear(2, 2), received)
