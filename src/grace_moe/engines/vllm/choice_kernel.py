"""The replica choice of `choice` as one Triton kernel, which also records loads as vLLM's own does. A program a token.

It replaces vLLM's kernel of the same place, so it costs no launch. All tables have fixed addresses: a CUDA graph that was captured with one
map goes on with the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from grace_moe.choice import hashing, joint
from grace_moe.engines.vllm.choice_tables import KernelTables

DRAW_BITS, ORDER_BITS, NODE_SALT = tl.constexpr(hashing.DRAW_BITS), tl.constexpr(joint.ORDER_BITS), tl.constexpr(joint.NODE_SALT)
HALF_ORDER = tl.constexpr(1 << (joint.ORDER_BITS - 1))
NEVER = tl.constexpr(1 << 62)
"""Above the order of any set of nodes."""


class DeviceTables:
    """One layer's tables on a device, at addresses that stay."""

    def __init__(self, tables: KernelTables, salt: int, own_node: int, device: torch.device) -> None:
        """`salt` of the layer's draws, from `hashing.layer_salt`; `own_node` of this rank."""
        self.tensors = [torch.from_numpy(array).to(device) for array in tables.arrays()]
        self.about = torch.tensor([salt, own_node], dtype=torch.int64, device=device)
        self.joint = tables.joint

    def refill(self, tables: KernelTables) -> None:
        """Take over tables of the same shape."""
        for tensor, array in zip(self.tensors, tables.arrays(), strict=True):
            tensor.copy_(torch.from_numpy(array))


def choose_and_record(
    tables: DeviceTables,
    topk_ids_TK: torch.Tensor,
    step: torch.Tensor,
    load_view: torch.Tensor,
    record: torch.Tensor,
    unpadded: torch.Tensor | None,
) -> torch.Tensor:
    """`[T, K]` slots of `RankChoice.slots`, in the type of the ids; adds the pairs to the loads where vLLM records them.

    Args:
        step: int64 number of the first token, and 1 in decode, else 0.
        load_view: int32 `[slots]` pairs of each slot.
        record: bool scalar; whether loads are recorded now.
        unpadded: int32 scalar, tokens that are no padding; None = all.
    """
    ids = topk_ids_TK.contiguous()
    out = torch.empty_like(ids)
    if not ids.numel():
        return out
    slots, _, _, _, order, price = tables.tensors
    top_k, nodes = ids.shape[1], len(price)
    _choose_and_record[(len(ids),)](
        ids,
        out,
        load_view,
        *tables.tensors,
        tables.about,
        step,
        record,
        unpadded,
        slots.shape[1],
        K=top_k,
        K_WIDTH=triton.next_power_of_2(top_k),
        REPLICAS=slots.shape[2],
        NODES=nodes,
        NODES_WIDTH=triton.next_power_of_2(nodes),
        SETS=len(order),
        JOINT=tables.joint,
        PADDED=unpadded is not None,
        num_warps=1,
    )
    return out


@triton.jit
def _draw(salt: tl.tensor, token: tl.tensor, of: tl.tensor) -> tl.tensor:
    """`choice.hashing.draw`, of int64."""
    x = (token * 0x27D4EB2F + of * 0x165667B1 + salt) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x46C6A68B) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> (32 - DRAW_BITS)


@triton.jit
def _smallest_set(
    salt: tl.tensor, token: tl.tensor, own: tl.tensor, hosts_K: tl.tensor, order_ptr: tl.tensor, SETS: tl.constexpr
) -> tl.tensor:
    """Mask of the nodes that the token visits: of the smallest sets with its own node and a replica of each expert, the first in order."""
    sets = tl.arange(0, SETS).to(tl.int64)
    serves = tl.min(((hosts_K[:, None] & sets[None, :]) != 0).to(tl.int32), axis=0)
    possible = (serves & ((sets >> own) & 1).to(tl.int32)) != 0
    order = _draw(salt, token, sets + NODE_SALT) + tl.load(order_ptr + sets)
    return tl.argmin(tl.where(possible, order, NEVER), axis=0).to(tl.int64)


@triton.jit
def _cover(
    salt: tl.tensor,
    token: tl.tensor,
    own: tl.tensor,
    hosts_K: tl.tensor,
    price_ptr: tl.tensor,
    NODES: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
) -> tl.tensor:
    """The same, greedily: the node with most experts not yet covered, again and again."""
    node = tl.arange(0, WIDTH).to(tl.int64)
    holds = (hosts_K[:, None] >> node[None, :]) & 1
    alone = ((hosts_K & (hosts_K - 1)) == 0).to(tl.int64)
    visits = tl.maximum((node == own).to(tl.int64), tl.max(holds * alone[:, None], axis=0))
    order = _draw(salt, token, node + NODE_SALT) - tl.load(price_ptr + node, mask=node < NODES, other=0) + HALF_ORDER
    for _ in tl.static_range(K):
        left = 1 - tl.max(holds * visits[None, :], axis=1)
        gain = (tl.sum(holds * left[:, None], axis=0) << ORDER_BITS) + order
        best = tl.argmax(tl.where(node < NODES, gain, -1), axis=0)
        visits = tl.where((node == best) & (tl.max(left, axis=0) > 0), 1, visits)
    return tl.sum(visits << node, axis=0)


@triton.jit
def _choose_and_record(
    ids_ptr: tl.tensor,
    out_ptr: tl.tensor,
    load_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    nodes_ptr: tl.tensor,
    hosts_ptr: tl.tensor,
    order_ptr: tl.tensor,
    price_ptr: tl.tensor,
    about_ptr: tl.tensor,
    step_ptr: tl.tensor,
    record_ptr: tl.tensor,
    unpadded_ptr: tl.tensor,
    experts: tl.tensor,
    K: tl.constexpr,
    K_WIDTH: tl.constexpr,
    REPLICAS: tl.constexpr,
    NODES: tl.constexpr,
    NODES_WIDTH: tl.constexpr,
    SETS: tl.constexpr,
    JOINT: tl.constexpr,
    PADDED: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(step_ptr) + row
    phase = tl.load(step_ptr + 1)
    salt, own = tl.load(about_ptr), tl.load(about_ptr + 1)
    k = tl.arange(0, K_WIDTH)
    expert = tl.load(ids_ptr + row * K + k, mask=k < K, other=-1).to(tl.int64)
    valid = (expert >= 0) & (expert < experts)
    at = phase * experts + tl.where(valid, expert, 0)
    cell = at[:, None] * REPLICAS + tl.arange(0, REPLICAS)[None, :]
    weights = tl.load(weights_ptr + cell).to(tl.int64)
    if JOINT:
        hosts = tl.load(hosts_ptr + at, mask=valid, other=-1)  # no expert: every node serves it
        if SETS > 0:
            visited = _smallest_set(salt, token, own, hosts, order_ptr, SETS)
        else:
            visited = _cover(salt, token, own, hosts, price_ptr, NODES, NODES_WIDTH, K)
        weights = weights * ((visited >> tl.load(nodes_ptr + cell).to(tl.int64)) & 1)
    ends = tl.cumsum(weights, axis=1)
    point = (_draw(salt, token, expert) * tl.sum(weights, axis=1)) >> DRAW_BITS
    replica = tl.sum((ends <= point[:, None]).to(tl.int64), axis=1)
    slot = tl.load(slots_ptr + at * REPLICAS + replica, mask=valid, other=-1)
    tl.store(out_ptr + row * K + k, slot, mask=k < K)
    recorded = tl.where(tl.load(record_ptr) != 0, K, 0)
    if PADDED:
        recorded = tl.where(row < tl.load(unpadded_ptr), recorded, 0)
    tl.atomic_add(load_ptr + slot, 1, mask=valid & (k < recorded))
