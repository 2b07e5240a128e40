"""Which accelerator a rank takes, and what ranks talk by where they share one."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from datetime import timedelta

from grace_moe.runtime.dispatch.rank_groups import make_groups, rank_device
from grace_moe.runtime.job.ranks import backend_of
from grace_moe.runtime.model.loading import bound_to, load_model
from tests.rank_pool import RankPool

from .conftest import placement_of


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=4))
def test_nccl_is_for_ranks_of_which_each_has_an_accelerator_of_its_own(accelerators):
    alone = "" not in accelerators and all(accelerators.count(one) == 1 for one in accelerators)
    assert backend_of(accelerators) == ("nccl" if alone else "gloo")


def test_ranks_take_turns_where_they_are_more_than_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    for rank in range(5):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        taken.append(rank_device().index)
    assert taken == [0, 1, 0, 1, 0]


def test_transformers_is_told_the_accelerator_and_not_the_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    with bound_to(torch.device("cuda", 1)):
        assert os.environ["LOCAL_RANK"] == "1"
    with bound_to(torch.device("cpu")):
        assert os.environ["LOCAL_RANK"] == "3"
    assert os.environ["LOCAL_RANK"] == "3"


def where_it_is(model, member):
    placement = placement_of("1x1", lambda e: (0,))
    loaded = load_model(model, placement, make_groups(placement.topology, timedelta(seconds=60)), dispatch="hierarchical")
    return {parameter.device.type for parameter in loaded.model.parameters()}


@pytest.mark.ranks(1)
def test_a_rank_that_is_alone_takes_its_accelerator_too(tiny_model, device):
    """Transformers distributes nothing over one rank, and leaves the model where it is told to."""
    rank = RankPool(1)
    try:
        assert rank.do(where_it_is, str(tiny_model)) == [{device}]
    finally:
        rank.close()
