"""What trainers use beside a plain step, on two ranks against one process: AdamW, accumulation, clipping, activation checkpointing, autocast,
and the auxiliary loss."""

from datetime import timedelta
from functools import partial

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from grace_moe.runtime.dispatch.rank_groups import make_groups, rank_device
from grace_moe.runtime.job.ranks import Membership
from grace_moe.runtime.model.gradients import clip_gradients, finish_expert_gradients
from grace_moe.runtime.model.loading import load_model, load_whole_model
from grace_moe.runtime.model.saving import save_model

from .conftest import VOCABULARY, make_model, placement_of, scattered_with_replicas

RANKS, STEPS, ACCUMULATED, SAMPLES, LENGTH = 2, 4, 2, 2, 12
RATE, MAX_NORM = 0.01, 0.5
PLACEMENT = placement_of("2x1", scattered_with_replicas(RANKS))


def batches() -> torch.Tensor:
    """`[steps, accumulated, ranks, samples, length]` token ids."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(2, VOCABULARY, (STEPS, ACCUMULATED, RANKS, SAMPLES, LENGTH), generator=generator)


def loss_of(model, ids, autocast):
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        return model(input_ids=ids, labels=ids, use_cache=False).loss


def train(model, steps, finish, clip, autocast=False):
    """Norms of the gradient, one a step."""
    model.train()
    model.activation_checkpointing_enable()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, foreach=False)
    norms = []
    for step in steps:
        optimiser.zero_grad()
        for ids in step:
            (loss_of(model, ids, autocast) / ACCUMULATED).backward()
        finish()
        norms.append(float(clip()))
        optimiser.step()
    return norms


def train_on_rank(folder, model, member: Membership):
    found = {}
    groups = make_groups(PLACEMENT.topology, timedelta(seconds=60))
    mine = batches()[:, :, member.rank].to(rank_device())
    for name, autocast in (("float32", False), ("autocast", True)):
        loaded = load_model(model, PLACEMENT, groups, dispatch="hierarchical")
        found[name] = train(
            loaded.model, mine, partial(finish_expert_gradients, loaded), partial(clip_gradients, loaded, MAX_NORM), autocast
        )
    save_model(loaded, f"{folder}/saved")
    with torch.no_grad():
        loaded.model.eval()
        found["logits"] = loaded.model(input_ids=mine[0, 0]).logits.cpu()
        loaded = load_model(model, PLACEMENT, groups, dispatch="flat")
        found["auxiliary"] = float(loaded.model(input_ids=mine[0, 0], labels=mine[0, 0], output_router_logits=True).aux_loss)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("trained") / "tiny", router_aux_loss_coef=0.0)


@pytest.fixture(scope="module")
def ranks(model, two_ranks, tmp_path_factory):
    """What each rank found, and the folder where they saved the model of their last training."""
    folder = tmp_path_factory.mktemp("ranks")
    return two_ranks.do(train_on_rank, str(folder), str(model)), folder / "saved"


@pytest.mark.ranks(RANKS)
def test_a_trained_model_saved_and_loaded_by_plain_transformers_gives_the_same_logits(model, ranks):
    found_by_rank, saved = ranks
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    for rank, found in enumerate(found_by_rank):
        ids = batches()[0, 0, rank]
        with torch.no_grad():
            torch.testing.assert_close(plain(input_ids=ids).logits, found["logits"], atol=1e-4, rtol=0)
            assert not torch.allclose(found["logits"], load_whole_model(str(model))(input_ids=ids).logits, atol=1e-2)  # it learnt


def norms_of_one_process(model, autocast):
    whole = load_whole_model(str(model))
    return train(
        whole,
        batches().flatten(2, 3),
        lambda: None,
        lambda: torch.nn.utils.clip_grad_norm_(whole.parameters(), MAX_NORM),
        autocast,
    )


@pytest.mark.ranks(RANKS)
def test_norms_of_clipped_accumulated_adamw_steps_are_those_of_one_process(model, ranks):
    """Each norm depends on all weights, and so on every step before it."""
    norms = norms_of_one_process(model, False)
    assert min(norms) > MAX_NORM  # all are clipped
    for found in ranks[0]:
        assert found["float32"] == ranks[0][0]["float32"]
        assert found["float32"] == pytest.approx(norms, rel=1e-5)


@pytest.mark.ranks(RANKS)
def test_mixed_precision_by_autocast_follows_one_process(model, ranks):
    norms = norms_of_one_process(model, True)
    for found in ranks[0]:
        assert found["autocast"] == pytest.approx(norms, rel=0.02)
        assert found["autocast"] != found["float32"]


@pytest.mark.ranks(RANKS)
def test_the_auxiliary_loss_of_a_rank_is_that_of_its_own_tokens(model, ranks):
    whole = load_whole_model(str(model))
    for rank, found in enumerate(ranks[0]):
        own = batches()[0, 0, rank]
        with torch.no_grad():
            assert found["auxiliary"] == pytest.approx(
                float(whole(input_ids=own, labels=own, output_router_logits=True).aux_loss), rel=1e-5
            )
