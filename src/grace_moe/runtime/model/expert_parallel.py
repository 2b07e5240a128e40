"""One experts module's way to its tokens: choose replicas, dispatch, compute, combine.

Two seams of Transformers (5.23) are used, and no model is patched:
- `ALL_PARALLEL_STYLES["grace_experts"]` (`placed_experts.PlacedExperts`), named in `ep_plan` for the experts' parameters, makes room on
  each rank for the experts of its own slots only (Transformers' own style cuts equal contiguous shards);
- `EPImplementationInterface["grace"]` (`GraceExpertParallel`) brings the tokens to them. Of a family with an adapter, the style
  `"grace_block"` (`AdaptedBlock`) does, in the forward pass of its MoE block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from transformers.distributed.expert_parallel import EPImplementation, EPImplementationInterface, ExpertParallelLayer
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES

from grace_moe.errors import ModelError
from grace_moe.runtime.dispatch import Outgoing, Received
from grace_moe.runtime.dispatch.autograd import combine_with_gradients, dispatch_with_gradients
from grace_moe.runtime.dispatch.dispatcher import Compute
from grace_moe.runtime.dispatch.route import LayerRoute
from grace_moe.runtime.dispatch.rows import add_rows
from grace_moe.runtime.model.adapters import ADAPTERS
from grace_moe.runtime.model.experts import compute_by_slot, computes_by_slot
from grace_moe.runtime.model.placed_experts import PlacedExperts, layer_of, session_of
from grace_moe.runtime.model.routing import chosen
from grace_moe.runtime.model.session import ExpertParallelSession
from grace_moe.runtime.model.vanilla import MeteredAllToAll

GRACE = "grace"
GRACE_EXPERTS = "grace_experts"
GRACE_BLOCK = "grace_block"
WHOLE = "grace_whole"
VANILLA = "grace_metered_all_to_all"
_PART = "_grace_part_of_block"


def register_names() -> None:
    """Make our names known to Transformers' registries; they always mean the same (see `load_under_way`)."""
    ALL_PARALLEL_STYLES.register(GRACE_EXPERTS, PlacedExperts())
    ALL_PARALLEL_STYLES.register(GRACE_BLOCK, AdaptedBlock())
    ALL_PARALLEL_STYLES.register(WHOLE, ExpertParallelLayer())
    EPImplementationInterface.register(GRACE, GraceExpertParallel)
    EPImplementationInterface.register(VANILLA, MeteredAllToAll)


class PlacedLayer:
    """Brings the tokens of one layer to their experts' devices and the sums back."""

    def __init__(self, experts: torch.nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        """`forward`: this rank's experts on pairs: hidden states `[P, H]`, slots `[P, 1]`, weights `[P, 1]` -> weighted outputs."""
        self.experts, self.forward = experts, forward

    @cached_property
    def session(self) -> ExpertParallelSession:
        """Known when the plan has been applied to all of the module."""
        return session_of(self.experts)

    @cached_property
    def layer_id(self) -> int:
        """Likewise."""
        return layer_of(self.experts)

    @property
    def route(self) -> LayerRoute:
        """Of the coming pass: another when experts have moved."""
        return self.session.routes[self.layer_id]

    def __call__(self, hidden_TH: torch.Tensor, topk_ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Weighted expert output of each of this rank's tokens, `[T, H]`; rows that are not real tokens give zeros."""
        session, route = self.session, self.route
        ids = self._real_tokens(chosen(topk_ids_TK, weights_TK, route.slot_of_DE.shape[1]))
        if session.log is not None:
            session.log.seen(route.layer_id, ids)
        if session.sampler is not None:
            session.sampler.seen(route.layer_id, ids)
        training = torch.is_grad_enabled() and (
            hidden_TH.requires_grad or weights_TK.requires_grad or any(p.requires_grad for p in self.experts.parameters())
        )
        if training and not hidden_TH.requires_grad:  # frozen below: a rank that gets no rows must still be part of the graph
            hidden_TH = hidden_TH.detach().requires_grad_()
        with session.timed("routing", route.layer_id):
            outgoing = route.outgoing(hidden_TH, ids, weights_TK, session.first_token, session.phase)
        compute = self._timed_compute()
        return self._with_gradients(outgoing, compute) if training else session.dispatcher.run(outgoing, compute, self._timed)

    def _real_tokens(self, ids_TK: torch.Tensor) -> torch.Tensor:
        """The ids, -1 in rows that are no token."""
        valid_T = self.session.valid_T
        if valid_T is None:
            return ids_TK
        if len(valid_T) != len(ids_TK):
            raise ModelError(f"layer {self.route.layer_id} got {len(ids_TK)} rows, the step announced {len(valid_T)}")
        return ids_TK.masked_fill(~valid_T[:, None], -1)

    def _with_gradients(self, outgoing: Outgoing, compute: Compute) -> torch.Tensor:
        dispatcher = self.session.dispatcher
        with self._timed("dispatch"):
            received, state = dispatch_with_gradients(dispatcher, outgoing)
        sums = compute(received)
        with self._timed("combine"):
            return combine_with_gradients(dispatcher, sums, state)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Time a phase of this layer, and note what the session's meter counts meanwhile, where there is a profiler."""
        session, meter = self.session, self.session.meter
        if session.profiler is None:
            yield
            return
        before = (meter.cross_node_bytes, meter.intra_node_bytes)
        with session.timed(phase, self.route.layer_id) as counts:
            yield
            counts |= {"cross_node_bytes": meter.cross_node_bytes - before[0], "intra_node_bytes": meter.intra_node_bytes - before[1]}

    def _timed_compute(self) -> Compute:
        """The experts of one pass; called on several parts of its rows, each expert counts as active once."""
        seen = torch.zeros(0, dtype=torch.int64)

        def compute(received: Received) -> torch.Tensor:
            nonlocal seen
            with self.session.timed("compute", self.route.layer_id) as counts:
                sums = self._compute(received)
                if self.session.profiler is not None:
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
        outputs = self.forward(hidden, received.slots_RK[row, k][:, None], weights)
        return add_rows(outputs, row, len(received.hidden_RH))


class GraceExpertParallel(EPImplementation):
    """A `PlacedLayer` where Transformers calls an experts module."""

    def __init__(self, experts: torch.nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        if tp_mesh.size() > 1:
            raise ModelError("grace runs data-parallel attention: use tp_size=1")
        self.layer = PlacedLayer(experts, self.experts_forward)

    def __call__(self, hidden: torch.Tensor, ids: Any, weights: Any) -> torch.Tensor:
        """As of `PlacedLayer`. A part of an adapter's block computes rows that are here already."""
        experts, layer = self.layer.experts, self.layer
        if hasattr(experts, _PART):
            outputs: torch.Tensor = self.experts_forward(hidden, ids) if weights is None else self.experts_forward(hidden, ids, weights)
            return outputs
        if layer.session.experts_of_text.get(layer.route.layer_id) != id(experts):
            raise ModelError(f"layer {layer.route.layer_id}: images have experts of their own, which are not run; give text")
        return layer(hidden, ids, weights)


class AdaptedBlock(ExpertParallelLayer):
    """Style of the MoE block of a family with an adapter: its forward pass reaches the experts wherever they are."""

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Replace the block's forward pass, and what it calls of its experts, by the adapter's."""
        adapter = ADAPTERS[type(module).__name__]
        for name in adapter.experts:
            part = module.get_submodule(name)
            setattr(part, _PART, True)
            if adapter.experts_forward is not None:
                part.forward = partial(adapter.experts_forward, part)
        layer = PlacedLayer(module, partial(adapter.compute, module))
        module.forward = lambda hidden: adapter.forward(module, hidden, layer)
        return module
