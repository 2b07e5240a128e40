"""The plug-in: expert parallelism by placement, registered with Transformers as `ep_implementation="grace"`.

Two seams of Transformers (5.23) are used, and no model is patched:
- `ALL_PARALLEL_STYLES["grace_experts"]`, named in `ep_plan` for the experts' parameters, makes room on each rank for the
  experts of its own slots only (Transformers' own style cuts equal contiguous shards);
- `EPImplementationInterface["grace"]` brings the tokens to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.distributed.expert_parallel import AllToAllEP, EPImplementation, EPImplementationInterface, ExpertParallelLayer
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from grace_moe.cost.wire import COUNT_BYTES
from grace_moe.errors import MismatchError, ModelError
from grace_moe.runtime.dispatch import Received
from grace_moe.runtime.dispatch.autograd import combine_with_gradients, dispatch_with_gradients
from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.model import Compute, add_rows
from grace_moe.runtime.dispatch.route import LayerRoute
from grace_moe.runtime.model.experts import compute_by_slot, computes_by_slot
from grace_moe.runtime.model.session import ExpertParallelSession

GRACE = "grace"
GRACE_EXPERTS = "grace_experts"
VANILLA = "grace_metered_all_to_all"
_SESSION = "_grace_session"
_LAYER = "_grace_layer_id"


class GraceExpertParallel(EPImplementation):
    """One experts module's way to its tokens: choose replicas, dispatch, compute, combine."""

    def __init__(self, experts: torch.nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        session = getattr(experts, _SESSION, None)
        if session is None:
            raise ModelError(
                'ep_implementation="grace" needs ep_plan to name "grace_experts": load with grace_moe.runtime.model.loading.load_model'
            )
        if tp_mesh.size() > 1:
            raise ModelError("grace runs data-parallel attention: use tp_size=1")
        self.experts = experts
        self.session: ExpertParallelSession = session
        self.route = session.routes[getattr(experts, _LAYER)]

    def __call__(self, hidden_TH: torch.Tensor, topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Weighted expert output of each of this rank's tokens, `[T, H]`; rows that are not real tokens give zeros."""
        session, route = self.session, self.route
        ids = topk_ids_TK.to(torch.int64)
        if session.valid_T is not None:
            if len(session.valid_T) != len(ids):
                raise ModelError(f"layer {route.layer_id} got {len(ids)} rows, the step announced {len(session.valid_T)}")
            ids = ids.masked_fill(~session.valid_T.to(ids.device)[:, None], -1)
        if session.log is not None:
            session.log.seen(route.layer_id, ids)
        training = torch.is_grad_enabled() and (
            hidden_TH.requires_grad or weights_TK.requires_grad or any(p.requires_grad for p in self.experts.parameters())
        )
        if training and not hidden_TH.requires_grad:  # frozen below: a rank that gets no rows must still be part of the graph
            hidden_TH = hidden_TH.detach().requires_grad_()
        with session.span("routing", route.layer_id):
            devices = route.devices_of(ids, session.first_token, session.phase)
            slots = route.slots_of(devices, ids)
        compute = self._timed_compute()
        if not training:
            return session.dispatcher.run(route, hidden_TH, devices, slots, weights_TK, compute, self._span)
        with self._span("dispatch"):
            received, state = dispatch_with_gradients(session.dispatcher, route, hidden_TH, devices, slots, weights_TK)
        sums = compute(received)
        with self._span("combine"):
            return combine_with_gradients(session.dispatcher, sums, state)

    @contextmanager
    def _span(self, phase: str) -> Iterator[None]:
        """Time a phase of this layer, and note what the session's meter counts meanwhile, where there is a monitor."""
        session, meter = self.session, self.session.meter
        if session.monitor is None:
            yield
            return
        before = (meter.cross_node_bytes, meter.intra_node_bytes)
        with session.span(phase, self.route.layer_id) as counts:
            yield
            counts |= {"cross_node_bytes": meter.cross_node_bytes - before[0], "intra_node_bytes": meter.intra_node_bytes - before[1]}

    def _timed_compute(self) -> Compute:
        """The experts of one pass; called on several parts of its rows, each expert counts as active once."""
        seen = torch.zeros(0, dtype=torch.int64)

        def compute(received: Received) -> torch.Tensor:
            nonlocal seen
            with self.session.span("compute", self.route.layer_id) as counts:
                sums = self._compute(received)
                if self.session.monitor is not None:
                    used = received.slots_RK[received.slots_RK >= 0].cpu()
                    active = torch.cat([seen, used]).unique()
                    counts |= {"tokens": len(received.slots_RK), "pairs": len(used), "active_experts": len(active) - len(seen)}
                    seen = active
            return sums

        return compute

    def _compute(self, received: Received) -> torch.Tensor:
        """`[R, H]` weighted sum of this rank's experts, over the slots that each row names."""
        if computes_by_slot(self.experts, received):
            return compute_by_slot(self.experts, received)
        row, k = (received.slots_RK >= 0).nonzero(as_tuple=True)
        if len(row) == 0:
            # Part of the graph: in training all ranks must take part in its backward pass.
            return received.hidden_RH * 0 + received.weights_RK.sum() * 0
        hidden = received.hidden_RH[row]
        weights = received.weights_RK[row, k][:, None].to(hidden.dtype)
        outputs = self.experts_forward(hidden, received.slots_RK[row, k][:, None], weights)
        return add_rows(outputs, row, len(received.hidden_RH))


class GraceExperts(ExpertParallelLayer):
    """Parameter style: a rank keeps the experts of its own slots, in slot order.

    A rank without experts in a layer keeps one spare slot that no token is sent to: Transformers' loader and FSDP take
    no empty parameters.
    """

    def __init__(self, session: ExpertParallelSession, num_experts: int) -> None:
        self.session = session
        self.num_experts = num_experts

    def validate_param(self, module: torch.nn.Module, param: str, mesh: Any, parameter_name: str | None = None) -> None:
        """Note which layer the module is: the seam names it here and nowhere else."""
        layer_id = layer_number(parameter_name or "")
        if layer_id not in self.session.routes:
            raise MismatchError(f"placement: layers: layer {layer_id} of the model is not placed; plan on a trace of this model")
        setattr(module, _LAYER, layer_id)
        setattr(module, _SESSION, self.session)

    def shard_param(self, module: torch.nn.Module, param: str, mesh: Any) -> None:
        """Shrink one parameter `[experts, ...]` to this rank's slots."""
        full = module._parameters.get(param)
        if full is None:
            return
        if full.shape[0] != self.num_experts:
            raise MismatchError(f"placement: num_experts: {self.num_experts} placed, the model has {full.shape[0]}; plan on its own trace")
        slots = max(1, len(self.session.routes[getattr(module, _LAYER)].local_experts))
        local = torch.empty((slots, *full.shape[1:]), dtype=full.dtype, device=full.device)
        module._parameters[param] = torch.nn.Parameter(local, requires_grad=full.requires_grad)
        module.num_experts = slots  # type: ignore[assignment]


def placed_experts(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, LayerRoute]]:
    """Each experts module of a loaded model, with its route."""
    for module in model.modules():
        session = getattr(module, _SESSION, None)
        if session is not None:
            yield module, session.routes[getattr(module, _LAYER)]


class MeteredAllToAll(AllToAllEP):
    """Transformers' own all-to-all, unchanged but for counting what it hands to its collectives."""

    meter: TrafficMeter

    def _dispatch_tokens(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> Any:
        tokens, expert_ids, weights, state = super()._dispatch_tokens(hidden_states, top_k_index, top_k_weights)
        ranks = range(self.ep_mesh.size())
        counts_bytes = self.num_local_experts * COUNT_BYTES
        self.meter.count(ranks, [counts_bytes for _ in ranks])
        row_bytes = hidden_states.shape[-1] * hidden_states.element_size()
        self.meter.count(ranks, [n * row_bytes for n in state.send_sizes])
        return tokens, expert_ids, weights, state

    def _combine_tokens(self, expert_output: torch.Tensor, state: Any) -> Any:
        row_bytes = expert_output.shape[-1] * expert_output.element_size()
        self.meter.count(range(self.ep_mesh.size()), [n * row_bytes for n in state.recv_sizes])
        return super()._combine_tokens(expert_output, state)


def register_grace(session: ExpertParallelSession, num_experts: int) -> None:
    """Make `ep_implementation="grace"` and the style `"grace_experts"` mean this session for the next model that is loaded."""
    ALL_PARALLEL_STYLES.register(GRACE_EXPERTS, GraceExperts(session, num_experts))
    EPImplementationInterface.register(GRACE, GraceExpertParallel)


def register_vanilla(meter: TrafficMeter) -> None:
    """Make `ep_implementation=VANILLA` Transformers' all-to-all, counted by this meter."""
    EPImplementationInterface.register(VANILLA, type("MeteredAllToAll", (MeteredAllToAll,), {"meter": meter}))


def layer_number(name: str) -> int:
    """The layer's own number in a parameter or module name such as `model.layers.3.mlp.experts.down_proj`.

    Raises:
        ModelError: the name has none.
    """
    match = re.search(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.", name + ".")
    if match is None:
        raise ModelError(f"{name}: no layer number in the name; this architecture is not supported yet")
    return int(match[1])
