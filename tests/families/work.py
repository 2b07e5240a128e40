"""What ranks of the pool are asked to do."""

from datetime import timedelta

import torch

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import make_groups
from grace_moe.runtime.job.ranks import Membership
from grace_moe.runtime.model.loading import LoadedModel, load_model
from grace_moe.runtime.model.placed_experts import placed_experts
from grace_moe.runtime.model.saving import save_model


def load(model: str, placement: str) -> LoadedModel:
    plan = Placement.load(placement)
    return load_model(model, plan, make_groups(plan.topology, timedelta(seconds=60)), dispatch="hierarchical")


def save(model: str, placement: str, folder: str, _: Membership) -> None:
    """Load a model by a placement, and write it as one checkpoint."""
    save_model(load(model, placement), folder)


def save_unequal(model: str, placement: str, folder: str, expert: int, member: Membership) -> None:
    """The same, with an expert of the first layer altered where its slot's rank is not the first to have it."""
    loaded = load(model, placement)
    module, route = next(iter(placed_experts(loaded.model)))
    hosts = (route.slot_of_DE[:, expert] >= 0).nonzero()[:, 0].tolist()
    if member.rank == hosts[-1]:
        with torch.no_grad():
            for parameter in module.parameters():
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                local[route.local_experts.index(expert)] += 1
    save_model(loaded, folder)
