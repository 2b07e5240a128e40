"""What ranks of the pool are asked to do."""

from datetime import timedelta

from grace_moe.placement import Placement
from grace_moe.runtime.dispatch.rank_groups import make_groups
from grace_moe.runtime.job.ranks import Membership
from grace_moe.runtime.model.loading import load_model
from grace_moe.runtime.model.saving import save_model


def save(model: str, placement: str, folder: str, _: Membership) -> None:
    """Load a model by a placement, and write it as one checkpoint."""
    plan = Placement.load(placement)
    groups = make_groups(plan.topology, timedelta(seconds=60))
    save_model(load_model(model, plan, groups, dispatch="hierarchical"), folder)
