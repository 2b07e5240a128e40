"""Cases of our replica choice for vLLM's kernel: by Triton's interpreter here, on a GPU in `tests/engines/test_choice_kernel.py`."""

from dataclasses import replace

import numpy as np
import torch

from grace_moe import Topology
from grace_moe.choice import choice_table
from grace_moe.choice.hashing import layer_salt
from grace_moe.engines.live.replica_choice import SEED, rank_choice
from grace_moe.engines.vllm.choice_kernel import DeviceTables, choose_and_record
from grace_moe.engines.vllm.choice_tables import kernel_tables
from grace_moe.placement import LayerPlacement
from grace_moe.topology import Device, Node

SHAPES = ["1x4", "2x2", "4x2", "8x2", "12x1", "uneven"]
CHOICES = ["near", "joint"]
TOP_K = [1, 3, 8]


def a_topology(shape):
    if shape != "uneven":
        return Topology.parse(shape)
    nodes = tuple(Node(name=f"n{n}", devices=tuple(Device(name=f"d{d}") for d in range(size))) for n, size in enumerate((3, 1, 2)))
    return replace(Topology.parse("1x6"), nodes=nodes)


def a_layer(generator, topology, experts):
    """Replicas at random, some of them not for decode, with prices."""
    devices, weights, decode = [], [], []
    for _ in range(experts):
        held = generator.permutation(topology.num_devices)[: generator.integers(1, min(4, topology.num_devices) + 1)]
        share, other = generator.random(len(held)) + 0.01, (generator.random(len(held)) < 0.6) + 0.0
        other[0] = 1.0
        devices.append(tuple(held.tolist()))
        weights.append(tuple((share / share.sum()).tolist()))
        decode.append(tuple((other / other.sum()).tolist()))
    prices = tuple((generator.random(topology.num_nodes) * 3).tolist())
    return LayerPlacement(
        layer_id=int(generator.integers(50)),
        devices_of_expert=tuple(devices),
        replica_weights=tuple(weights),
        decode_weights=tuple(decode),
        node_prices=prices,
    )


def slots_of(layer, topology):
    """A slot map as wide as the fullest device; what is left over holds an expert again."""
    held = [[e for e, devices in enumerate(layer.devices_of_expert) if d in devices] for d in range(topology.num_devices)]
    width = max(map(len, held))
    return np.array([e for experts in held for e in (experts + experts * width + [0] * width)[:width]])


def check(shape, choice, top_k, device):
    """The kernel, the reference and NumPy's choice take the same slots, and the kernel counts them."""
    generator, topology = np.random.default_rng([top_k, len(choice), *shape.encode()]), a_topology(shape)
    layer = a_layer(generator, topology, experts=12)
    row = slots_of(layer, topology)
    rank = int(generator.integers(topology.num_devices))
    ids = np.argsort(generator.random((9, 12)), axis=1)[:, :top_k]
    ids[generator.random(ids.shape) < 0.1] = -1
    first = int(generator.integers(2**31 - 100))
    tokens = np.arange(first, first + len(ids))
    reference = rank_choice(layer, row, topology, rank, choice)
    tables = kernel_tables(reference, topology.node_of_device, width=4)
    own = int(topology.node_of_device[rank])
    on_device = DeviceTables(tables, layer_salt(SEED, layer.layer_id), own, device)
    for decode in (False, True):
        of_phase = layer.in_decode() if decode else layer
        policy = {"near": "tar", "joint": "joint"}[choice]
        devices = choice_table(of_phase, topology, policy).choose(layer.layer_id, ids, np.full(len(ids), rank), tokens, seed=SEED)
        slots = reference.convert(torch.from_numpy).slots(torch.from_numpy(ids), torch.from_numpy(tokens), decode=decode)
        width = len(row) // topology.num_devices
        assert (torch.where(slots < 0, -1, slots // width).numpy() == devices).all()
        assert (row[slots[slots >= 0]] == ids[ids >= 0]).all()
        load, unpadded = torch.zeros(len(row), dtype=torch.int32, device=device), torch.tensor(7, dtype=torch.int32, device=device)
        step, record = torch.tensor([first, int(decode)], device=device), torch.tensor(True, device=device)
        found = choose_and_record(on_device, torch.from_numpy(ids).int().to(device), step, load, record, unpadded)
        assert found.dtype == torch.int32
        assert (found.cpu() == slots).all()
        counted = slots[:7][slots[:7] >= 0]
        assert (load.cpu() == torch.bincount(counted, minlength=len(row))).all()
