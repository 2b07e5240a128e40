"""The modelled time of a layer that `compare` shows: of the model's sizes, over the backend that was asked for."""

from __future__ import annotations

from dataclasses import replace

from grace_moe.cost.backends import Cluster, exchange_seconds
from grace_moe.cost.exchange import LOW_LATENCY
from grace_moe.cost.flows import Flows
from grace_moe.cost.hardware import expert_kernel, hardware_of
from grace_moe.cost.layer_time import BATCH_TOKENS, LayerTime, modelled_layer_time
from grace_moe.cost.sizes import OLMOE, ModelSizes
from grace_moe.evaluation.metrics import Evaluation
from grace_moe.topology import Topology

_TIMED_AS = {"nixl_ep": LOW_LATENCY, "allgather_reducescatter": "allgather"}
"""Backends that send what another one sends, and have no times of their own."""


def row_time(evaluation: Evaluation, topology: Topology, model: ModelSizes | None) -> LayerTime:
    """A layer over hierarchical dispatch (`modelled_layer_time`).

    Args:
        model: None = of OLMoE's sizes, at 100 TFLOP/s.
    """
    if model is None:
        return modelled_layer_time(evaluation, topology)
    pair = expert_kernel(hardware_of(topology), "prefill", model).compute_s(model)
    return modelled_layer_time(evaluation, topology, row_bytes=round(model.hidden_bytes), pairs_per_second=1 / pair)


def backend_row_time(evaluation: Evaluation, flows: Flows, topology: Topology, model: ModelSizes | None, backend: str) -> LayerTime:
    """The same with dispatch and combine over a backend (docs/cost.md#transports).

    Args:
        flows: of the evaluation's tokens.
        backend: one of `cost.sent.SENDS`.
    """
    time = row_time(evaluation, topology, model)
    recorded = flows.recorded
    if not recorded.any():
        return time
    cluster, scale = Cluster.of(topology, model or OLMOE), BATCH_TOKENS / flows.num_tokens
    dispatch, combine = exchange_seconds(_TIMED_AS.get(backend, backend), cluster, flows, scale)
    return replace(time, dispatch=float(dispatch[recorded].mean()), combine=float(combine[recorded].mean()))
