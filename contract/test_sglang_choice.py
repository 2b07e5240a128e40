"""Our replica choice in SGLang's own code: its static table and its lookup give the slots that a replay predicts, map by map."""

import importlib
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from grace_moe.choice import joint_choice_table
from grace_moe.engines import SlotMap
from grace_moe.engines.live.live_plan import CHOICE
from sglang_stand_ins import EXPERTS, LAYERS, PLANNED, RANKS, SLOTS, Model, hooked, load, planned, unpacked

pytestmark = unpacked


def start(sglang, plan, tmp_path, monkeypatch, rank, choice):
    """A server that starts from our file, as far as its map: with a choice of ours, or by its own rule."""
    if choice is not None:
        monkeypatch.setenv(CHOICE, choice)
        hooked(monkeypatch, tmp_path)
    metadata = load(sglang, plan, tmp_path, rank)
    sglang.location.set_global_expert_location_metadata(metadata)
    return metadata


def tokens(layer, count=400):
    """Experts of a layer's tokens: two that go together, and two others."""
    draws = np.random.default_rng(layer).random((count, EXPERTS))
    draws[:, ::3] += np.where(np.arange(count) % 2, 0.5, 0.0)[:, None]
    return torch.from_numpy(np.argsort(-draws, axis=1)[:, :4].copy())


def slots_of(sglang, layer, ids):
    """As its routing asks: by the dispatch information of the layer."""
    return sglang.dispatch.topk_ids_logical_to_physical(ids, sglang.dispatch.ExpertLocationDispatchInfo.init_new(layer)).numpy()


@pytest.mark.shows("sglang", "near", "modules")
def test_its_static_table_deals_ranks_out_by_weight(sglang, sglang_plan, tmp_path, monkeypatch):
    """From a file, for which SGLang drops all replicas but one before it makes the table."""
    monkeypatch.setenv(CHOICE, "near")
    hooked(monkeypatch, tmp_path)
    tables = []
    for rank in range(RANKS):
        metadata = load(sglang, sglang_plan, tmp_path, rank)
        tables.append(metadata.logical_to_rank_dispatch_physical_map[list(PLANNED)].numpy())
    for index, layer in enumerate(sglang_plan.layers):
        row = metadata.physical_to_logical_map[layer.layer_id].numpy()
        for expert, devices in enumerate(layer.devices_of_expert):
            taken = [int(table[index, expert]) for table in tables]
            assert (row[taken] == expert).all()
            for rank, slot in enumerate(taken):
                near = [d for d in devices if d == rank] or [d for d in devices if d // 2 == rank // 2] or devices
                assert slot // (SLOTS // RANKS) in near
    assert (metadata.physical_to_logical_map[0][metadata.logical_to_rank_dispatch_physical_map[0]] == torch.arange(EXPERTS)).all()


@pytest.mark.shows("sglang", "joint", "modules")
@pytest.mark.parametrize("rank", range(RANKS))
def test_its_lookup_gives_the_joint_slots_that_a_replay_predicts(sglang, sglang_plan, tmp_path, monkeypatch, rank):
    start(sglang, sglang_plan, tmp_path, monkeypatch, rank, "joint")
    row_of = SlotMap.of(sglang_plan).physical_to_logical
    for index, layer in enumerate(sglang_plan.layers):
        ids = tokens(layer.layer_id)
        found = np.concatenate([slots_of(sglang, layer.layer_id, part) for part in (ids[:150], ids[150:])])
        table = joint_choice_table(layer, sglang_plan.topology)
        expected = table.choose(layer.layer_id, ids.numpy(), np.full(len(ids), rank), np.arange(len(ids)), seed=0)
        assert (found // (SLOTS // RANKS) == expected).all()
        assert (row_of[index][found] == ids.numpy()).all()


def test_joint_choice_sends_fewer_copies_than_its_own_rule(sglang, tmp_path, monkeypatch):
    """The same plan, tokens and rank, all layers, on four nodes: on two, a token needs the other one or not, whatever the rule."""
    sglang.parallel.nnodes = RANKS
    plan = planned(tmp_path, "4x1")
    sent = []
    for choice in (None, "near", "joint"):
        sglang.resources.expert_location_metadata = None
        importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.reset()
        start(sglang, plan, tmp_path, monkeypatch, 0, choice)
        nodes = [slots_of(sglang, layer, tokens(layer)) // (SLOTS // RANKS) for layer in PLANNED]
        sent.append(sum(len(set(row.tolist()) - {0}) for rows in nodes for row in rows))
    theirs, near, joint = sent
    assert joint < 0.95 * min(near, theirs)


def test_chunks_of_a_rebalance_take_effect_layer_by_layer(sglang, sglang_plan, tmp_path, monkeypatch):
    """Its `update`, which is called for a chunk of layers at a time."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    theirs = sglang.location.ExpertLocationMetadata.init_by_eplb(Model, torch.randint(1, 99, (LAYERS, EXPERTS)))
    serves = start(sglang, sglang_plan, tmp_path, monkeypatch, 0, "joint")
    before = {layer: slots_of(sglang, layer, tokens(layer)) for layer in PLANNED}
    serves.update(theirs, update_layer_ids=[0, 1])
    for layer in PLANNED:
        found = slots_of(sglang, layer, tokens(layer))
        assert (serves.physical_to_logical_map[layer].numpy()[found] == tokens(layer).numpy()).all()
        assert (serves.physical_to_logical_map[layer].numpy()[before[layer]] == tokens(layer).numpy()).all() == (layer != 1)


def test_without_an_all_to_all_backend_every_rank_chooses_alike(sglang, sglang_plan, tmp_path, monkeypatch):
    sglang.moe.moe_a2a_backend, sglang.moe.ep_dispatch_algorithm = "none", "dynamic"
    start(sglang, sglang_plan, tmp_path, monkeypatch, 1, "joint")
    ids = tokens(1)
    ours = slots_of(sglang, 1, ids)
    info = SimpleNamespace(**vars(sglang.dispatch.ExpertLocationDispatchInfo.init_new(1)))
    assert (ours == sglang.dispatch._topk_ids_logical_to_physical_dynamic(ids, info).numpy()).all()


def test_modules_that_had_imported_the_lookup_get_ours_too(sglang, sglang_plan, tmp_path, monkeypatch):
    """As `layers.moe.topk` does; and torch's compiler, inside of which it calls the lookup, traces all of it."""
    user = ModuleType("sglang.srt.layers_of_before")
    user.lookup = sglang.dispatch.topk_ids_logical_to_physical
    monkeypatch.setitem(importlib.import_module("sys").modules, user.__name__, user)
    start(sglang, sglang_plan, tmp_path, monkeypatch, 3, "joint")
    assert user.lookup is sglang.dispatch.topk_ids_logical_to_physical
    info = sglang.dispatch.ExpertLocationDispatchInfo.init_new(2)
    ids = tokens(2)
    compiled = torch.compile(lambda ids, info: user.lookup(ids, info), backend="eager", fullgraph=True, dynamic=True)
    found = compiled(ids, info)
    layer = sglang_plan.layers[1]
    table = joint_choice_table(layer, sglang_plan.topology)
    assert (found.numpy() // 5 == table.choose(2, ids.numpy(), np.full(len(ids), 3), np.arange(len(ids)), seed=0)).all()
