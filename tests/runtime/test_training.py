"""Training by placement follows one process: losses of 20 optimiser steps on 4 ranks, replicas equal to the last bit."""

from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist

from grace_moe.runtime.dispatch.rank_groups import make_groups, rank_device
from grace_moe.runtime.job.ranks import Membership
from grace_moe.runtime.model.gradients import finish_expert_gradients
from grace_moe.runtime.model.loading import load_model, load_whole_model
from grace_moe.runtime.model.placed_experts import placed_experts

from .conftest import VOCABULARY, placement_of, scattered_with_replicas

RANKS, STEPS, SAMPLES, LENGTH = 4, 20, 2, 12
RATE = 0.05


def batches() -> torch.Tensor:
    """`[steps, ranks, samples, length]` token ids: two batches in turn, to be learnt by heart."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, VOCABULARY, (2, RANKS, SAMPLES, LENGTH), generator=generator).repeat(STEPS // 2, 1, 1, 1)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().to_local() if hasattr(parameter, "to_local") else parameter.detach()


def three_of_four(e: int) -> tuple[int, ...]:
    """Device 3 has no expert; every third expert has a replica."""
    return (e % 3, (e + 1) % 3) if e % 3 == 0 else (e % 3,)


CASES = {
    "flat": ("flat", False, scattered_with_replicas(RANKS)),
    "hierarchical": ("hierarchical", False, scattered_with_replicas(RANKS)),
    "experts alone are trained, a rank without experts": ("hierarchical", True, three_of_four),
}


def freeze_all_but_experts(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".experts." in name)


def train_on_rank(folder: str, model: str, case: str, member: Membership) -> None:
    rank = member.rank
    dispatch, frozen, devices_of_expert = CASES[case]
    placement = placement_of("2x2", devices_of_expert)
    loaded = load_model(model, placement, make_groups(placement.topology, timedelta(seconds=60)), dispatch=dispatch)
    if frozen:
        freeze_all_but_experts(loaded.model)
    optimiser = torch.optim.SGD(loaded.model.parameters(), lr=RATE, foreach=False)
    losses = []
    for step in batches().to(rank_device()):
        optimiser.zero_grad()
        loss = loaded.model(input_ids=step[rank], labels=step[rank]).loss
        loss.backward()
        finish_expert_gradients(loaded)
        optimiser.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / RANKS)
    experts = [
        {
            (route.layer_id, e, i): whole(p)[slot].cpu().clone()
            for slot, e in enumerate(route.local_experts)
            for i, p in enumerate(module.parameters(recurse=False))
        }
        for module, route in placed_experts(loaded.model)
    ]
    torch.save({"losses": losses, "experts": {k: v for layer in experts for k, v in layer.items()}}, f"{folder}/rank{rank}.pt")


@pytest.mark.ranks
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_follow_one_process_and_replicas_stay_equal(case, pool, tiny_model, tmp_path):
    pool.do(train_on_rank, str(tmp_path), str(tiny_model), case)
    results = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(RANKS)]

    model = load_whole_model(str(tiny_model))
    if CASES[case][1]:
        freeze_all_but_experts(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, foreach=False)
    losses = []
    for step in batches():
        optimiser.zero_grad()
        loss = model(input_ids=step.flatten(0, 1), labels=step.flatten(0, 1)).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[1] - 0.01
    for result in results:
        torch.testing.assert_close(torch.tensor(result["losses"]), torch.tensor(losses), atol=2e-4, rtol=0)
    first: dict = {}
    copies = 0
    for result in results:
        for name, value in result["experts"].items():
            if name in first:
                copies += 1
                assert torch.equal(first[name], value), name
            first.setdefault(name, value)
    assert copies > 0
