"""WRR and TAR as tables: exact thresholds, the draw, and NumPy against torch."""

from dataclasses import replace

import numpy as np
import pytest

from grace_moe.choice import DRAW_BITS, choice_tables, choose_devices, decode_choice_tables, draw, replica_choice_table
from grace_moe.placement import LayerPlacement, Placement
from grace_moe.topology import Topology

FULL = 1 << DRAW_BITS
TOPOLOGY = Topology.regular(2, 2)
LAYER = LayerPlacement(
    layer_id=3,
    devices_of_expert=((0, 2, 3), (3, 2), (1,)),
    replica_weights=((0.5, 0.25, 0.25), (0.25, 0.75), (1.0,)),
)


def test_wrr_uses_all_replicas_by_weight_from_everywhere():
    table = replica_choice_table(LAYER, TOPOLOGY, "wrr")
    for source in range(4):
        assert table.devices[source].tolist() == [[0, 2, 3], [3, 2, 2], [1, 1, 1]]
        assert table.thresholds[source].tolist() == [[FULL // 2, FULL * 3 // 4], [FULL // 4, FULL], [FULL, FULL]]


def test_tar_prefers_the_source_then_its_node_then_any():
    table = replica_choice_table(LAYER, TOPOLOGY, "tar")
    # Expert 0 on 0, 2, 3: its own replica on 0, 2, 3; from 1 the one on its node.
    assert table.devices[:, 0].tolist() == [[0, 0, 0], [0, 0, 0], [2, 2, 2], [3, 3, 3]]
    assert (table.thresholds[:, 0] == FULL).all()
    # Expert 1 on 3, 2: from node 0 any, by weight.
    assert table.devices[:, 1].tolist() == [[3, 2, 2], [3, 2, 2], [2, 2, 2], [3, 3, 3]]
    assert table.thresholds[:, 1].tolist() == [[FULL // 4, FULL], [FULL // 4, FULL], [FULL, FULL], [FULL, FULL]]
    # Expert 2 has one replica.
    assert (table.devices[:, 2] == 1).all()


def test_tar_draws_by_weight_among_replicas_of_the_node():
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1, 4),), replica_weights=((0.2, 0.6, 0.2),))
    table = replica_choice_table(layer, Topology.regular(2, 3), "tar")
    # From device 2: 0 and 1 are on its node, with 0.2 and 0.6 of 0.8.
    assert table.devices[2, 0].tolist() == [0, 1, 1]
    assert table.thresholds[2, 0].tolist() == [FULL // 4, FULL]


def test_weights_of_zero_are_shared_evenly():
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1, 2),), replica_weights=((0.0, 0.0, 1.0),))
    table = replica_choice_table(layer, Topology.regular(2, 3), "tar")
    assert table.devices[0, 0].tolist() == [0, 0, 0]
    layer = LayerPlacement(layer_id=0, devices_of_expert=((0, 1, 3),), replica_weights=((0.0, 0.0, 1.0),))
    assert replica_choice_table(layer, Topology.regular(2, 3), "tar").thresholds[2, 0].tolist() == [FULL // 2, FULL]


def test_choose_devices_at_the_thresholds():
    table = replica_choice_table(LAYER, TOPOLOGY, "wrr")
    draws = np.array([[0], [FULL // 2 - 1], [FULL // 2], [FULL * 3 // 4 - 1], [FULL * 3 // 4], [FULL - 1]])
    chosen = choose_devices(table.devices, table.thresholds, np.zeros((6, 1), dtype=np.int64), np.zeros((6, 1), dtype=np.int64), draws)
    assert chosen.ravel().tolist() == [0, 0, 2, 2, 3, 3]


def test_no_choice_stays_none():
    table = replica_choice_table(LAYER, TOPOLOGY, "tar")
    ids = np.array([[2, -1], [-1, 0]])
    chosen = choose_devices(table.devices, table.thresholds, ids, np.array([[0], [1]]), np.zeros((2, 2), dtype=np.int64))
    assert chosen.tolist() == [[1, -1], [-1, 0]]


def test_single_replicas_need_no_draw():
    layer = LayerPlacement(layer_id=0, devices_of_expert=((1,), (0,)), replica_weights=((1.0,), (1.0,)))
    table = replica_choice_table(layer, Topology.regular(1, 2), "tar")
    assert table.thresholds.shape == (2, 2, 0)
    ids = np.array([[0, 1], [-1, 0]])
    chosen = choose_devices(table.devices, table.thresholds, ids, np.array([[0], [1]]), np.zeros((2, 2), dtype=np.int64))
    assert chosen.tolist() == [[1, 0], [-1, 1]]


def test_tables_follow_the_placements_own_policy():
    placement = Placement(topology=TOPOLOGY, num_experts=3, layers=(LAYER,), replica_choice="wrr")
    (table,) = choice_tables(placement)
    assert (table.devices == replica_choice_table(LAYER, TOPOLOGY, "wrr").devices).all()


@pytest.mark.parametrize("policy", ["wrr", "tar", "joint"])
def test_decode_has_tables_of_the_replicas_that_it_uses(policy):
    """Expert 0 (on 0, 2, 3) is used on 3 and, thrice as much, on 0; expert 1 (on 3, 2) on 3 alone."""
    layer = replace(LAYER, decode_weights=((0.75, 0.0, 0.25), (1.0, 0.0), (1.0,)))
    placement = Placement(topology=TOPOLOGY, num_experts=3, layers=(layer, replace(LAYER, layer_id=4)), replica_choice=policy)
    table, none = decode_choice_tables(placement)
    assert none is None
    ids = np.tile([[0, 1, 2]], (4000, 1))
    chosen = table.choose(3, ids, np.zeros(4000, dtype=np.int64), np.arange(4000), seed=0)
    want = {"wrr": [0.75, 0, 0, 0.25], "tar": [1, 0, 0, 0], "joint": [0.75, 0, 0, 0.25]}[
        policy
    ]  # joint: expert 1 takes it to node 1 anyway
    assert np.bincount(chosen[:, 0], minlength=4) / 4000 == pytest.approx(want, abs=0.03)
    assert (chosen[:, 1] == 3).all()
    (in_prefill, _) = choice_tables(placement)
    assert 2 in in_prefill.choose(3, ids, np.full(4000, 2), np.arange(4000), seed=0)[:, 0]


def draws_of(seed: int, layer_id: int, tokens: int = 4096, experts: int = 16) -> np.ndarray:
    return draw(seed, layer_id, np.arange(tokens)[:, None], np.arange(experts)[None, :])


def test_draw_is_roughly_uniform():
    for seed, layer_id in ((0, 0), (1, 0), (0, 15), (12345, 7)):
        draws = draws_of(seed, layer_id)
        assert draws.min() >= 0
        assert draws.max() < FULL
        counts = np.bincount((draws >> (DRAW_BITS - 4)).ravel(), minlength=16)
        # 65,536 draws in 16 bins: 4096 each, give or take 5 standard deviations of 62.
        assert abs(counts - 4096).max() < 310
        low_bits = np.bincount((draws & 15).ravel(), minlength=16)
        assert abs(low_bits - 4096).max() < 310


def test_draws_of_seeds_layers_tokens_and_experts_are_unrelated():
    base = draws_of(0, 0)
    for other in (draws_of(1, 0), draws_of(0, 1), np.roll(base, 1, axis=0), np.roll(base, 1, axis=1)):
        # 65,536 pairs: the correlation's standard deviation is 0.004.
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.02
    assert (draws_of(0, 0) == base).all()


def test_wrr_shares_follow_the_weights():
    table = replica_choice_table(LAYER, TOPOLOGY, "wrr")
    ids = np.zeros((20_000, 1), dtype=np.int64)
    chosen = choose_devices(table.devices, table.thresholds, ids, ids, draw(0, 3, np.arange(20_000)[:, None], ids))
    assert (chosen == table.choose(3, ids, ids[:, 0], np.arange(20_000), seed=0)).all()
    shares = np.bincount(chosen.ravel(), minlength=4) / 20_000
    assert shares == pytest.approx([0.5, 0, 0.25, 0.25], abs=0.02)


@pytest.mark.parametrize("policy", ["wrr", "tar"])
def test_torch_chooses_as_numpy_does(policy):
    torch = pytest.importorskip("torch")
    table = replica_choice_table(LAYER, TOPOLOGY, policy)
    generator = np.random.default_rng(0)
    ids = generator.integers(-1, 3, (500, 2))
    sources = generator.integers(0, 4, (500, 1))
    tokens = generator.integers(0, 2**31, (500, 1))
    draws = draw(2**31 + 5, 47, tokens, ids)
    torch_draws = draw(2**31 + 5, 47, torch.from_numpy(tokens), torch.from_numpy(ids))
    assert torch_draws.dtype == torch.int64
    assert torch_draws.numpy().tolist() == draws.tolist()
    chosen = choose_devices(table.devices, table.thresholds, ids, sources, draws)
    torch_chosen = choose_devices(
        torch.from_numpy(table.devices), torch.from_numpy(table.thresholds), torch.from_numpy(ids), torch.from_numpy(sources), torch_draws
    )
    assert torch_chosen.numpy().tolist() == chosen.tolist()
    assert ((chosen == -1) == (ids == -1)).all()
