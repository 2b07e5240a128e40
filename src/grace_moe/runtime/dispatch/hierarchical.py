"""Hierarchical sparse communication (docs/method.md): one copy a node over the rails, then one a device inside the node.

source ──stage 1──> ingress device (same local rank on the other node) ──stage 2──> devices of the experts
source <─────────── sum of the node's partial sums <─────────────────────────────── weighted partial sums
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from grace_moe.runtime.dispatch.collectives import TrafficMeter
from grace_moe.runtime.dispatch.dispatcher import Compute, Outgoing, PhaseTimer, Received
from grace_moe.runtime.dispatch.rank_groups import RankGroups
from grace_moe.runtime.dispatch.rows import add_rows
from grace_moe.runtime.dispatch.splits import Splits
from grace_moe.runtime.dispatch.stages import Begun, CodedRows, Stage, TwoStages

OVERLAP_PAIRS = 80
"""Pairs per slot, over all ranks, from which experts compute in three parts. With fewer, each part reads all weights for few rows, which
costs more than the overlap saves."""
OVERLAP_PAIRS_ON_CPU = 200
"""The same where experts compute on the cores that also move the rows, so that overlap saves less. Measured: a sixth slower at 100, even
at 200."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalState:
    """What `combine` needs to undo `dispatch`."""

    cross: Stage
    intra: Stage
    token_of_own_row: torch.Tensor
    """int64: the tokens of this rank with an expert on this node, in the order of stage 2."""


@dataclass(frozen=True, kw_only=True)
class HierarchicalDispatcher:
    """Two stages each way, in five collectives: the counts of both stages go in one exchange.

    Large batches take seven: experts compute in parts while rows cross between nodes (`run`).
    """

    groups: RankGroups
    meter: TrafficMeter
    overlap_pairs: float | None = None
    """Pairs per slot from which `run` computes while rows cross; None = by the kind of device."""

    @cached_property
    def stages(self) -> TwoStages:
        """The two stages of a dispatch."""
        return TwoStages(groups=self.groups, meter=self.meter)

    def dispatch(self, outgoing: Outgoing, splits: Splits | None = None) -> tuple[Received, HierarchicalState]:
        """Stage 1 sends (node, token) rows to rail peers; stage 2 sends own and arrived rows to devices of this node.

        `splits`: where they have been exchanged already.
        """
        splits = self.stages.counts.exchange(outgoing.devices_TK) if splits is None else splits
        return self._finish(self.stages.begin(outgoing, splits))

    def run(self, outgoing: Outgoing, compute: Compute, timer: PhaseTimer, splits: Splits | None = None) -> torch.Tensor:
        """Dispatch, compute and combine; of large batches in parts (`_run_in_parts`). `splits`: as of `dispatch`."""
        with timer("dispatch"):
            splits = self.stages.counts.exchange(outgoing.devices_TK) if splits is None else splits
            begun = self.stages.begin(outgoing, splits)
            in_turn = self._is_small(splits, outgoing) or self.groups.topology.num_nodes == 1
            if in_turn:
                received, state = self._finish(begun)
        if not in_turn:
            return self._run_in_parts(begun, compute, timer)
        sums = compute(received)
        with timer("combine"):
            return self.combine(sums, state)

    def _run_in_parts(self, begun: Begun, compute: Compute, timer: PhaseTimer) -> torch.Tensor:
        """Half of the node's own rows are computed while rows of other nodes come in, and half while their sums go back."""
        stages, splits = self.stages, begun.splits
        with timer("dispatch"):
            near, near_source = stages.inside_node(begun.own, begun.width, splits.own_send, splits.own_receive)
        half = len(near.hidden_RH) // 2
        first_sums = compute(near.rows(slice(None, half)))
        with timer("dispatch"):
            arrived = begun.arrived()
            far, far_source = stages.inside_node(arrived, begun.width, splits.far_send, splits.far_receive)
        far_sums = compute(far)
        with timer("combine"):
            inside = stages.node.exchange_rows(far_sums, splits.far_receive, splits.far_send)
            ingress = add_rows(inside, far_source, len(arrived.hidden))
            going_back = stages.rail.send_rows(ingress, splits.cross_receive, splits.cross_send)
        second_sums = compute(near.rows(slice(half, None)))
        with timer("combine"):
            inside = stages.node.exchange_rows(torch.cat([first_sums, second_sums]), splits.own_receive, splits.own_send)
            own = add_rows(inside, near_source, len(begun.own.hidden))
            return _at_source(own, going_back.wait(), begun.token_of_own_row, begun.cross_stage())

    def combine(self, partial_RH: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """Ingress devices sum their node's partial sums; one row a (token, node) goes back; nodes are summed at the source."""
        intra, cross = state.intra, state.cross
        inside = self.stages.node.exchange_rows(partial_RH, intra.receive_splits, intra.send_splits)
        summed = add_rows(inside, intra.source_of_row, intra.num_rows)
        own, ingress = torch.split(summed, [len(state.token_of_own_row), sum(cross.receive_splits)])
        back = self.stages.rail.exchange_rows(ingress, cross.receive_splits, cross.send_splits)
        return _at_source(own, back, state.token_of_own_row, cross)

    def spread(self, rows_TW: torch.Tensor, state: HierarchicalState) -> torch.Tensor:
        """The ways of `dispatch`, without slots and weights."""
        intra, cross = state.intra, state.cross
        arrived = self.stages.rail.exchange_rows(rows_TW[cross.source_of_row], cross.send_splits, cross.receive_splits)
        inside = torch.cat([rows_TW[state.token_of_own_row], arrived])[intra.source_of_row]
        return self.stages.node.exchange_rows(inside, intra.send_splits, intra.receive_splits)

    def _finish(self, begun: Begun) -> tuple[Received, HierarchicalState]:
        """Stage 2 of all rows at once: own tokens, then what arrived, one row a (row, device)."""
        splits, own, far = begun.splits, begun.own, begun.arrived()
        rows = CodedRows(
            hidden=torch.cat([own.hidden, far.hidden]),
            codes=torch.cat([own.codes, far.codes]),
            weights=torch.cat([own.weights, far.weights]),
        )
        send = [a + b for a, b in zip(splits.own_send, splits.far_send, strict=True)]
        receive = [a + b for a, b in zip(splits.own_receive, splits.far_receive, strict=True)]
        received, source_of_row = self.stages.inside_node(rows, begun.width, send, receive)
        intra = Stage(source_of_row=source_of_row, num_rows=len(rows.hidden), send_splits=send, receive_splits=receive)
        return received, HierarchicalState(cross=begun.cross_stage(), intra=intra, token_of_own_row=begun.token_of_own_row)

    def _is_small(self, splits: Splits, outgoing: Outgoing) -> bool:
        """Whether parts would cost more than they hide; alike on every rank."""
        least = self.overlap_pairs
        if least is None:
            least = OVERLAP_PAIRS_ON_CPU if outgoing.hidden_TH.device.type == "cpu" else OVERLAP_PAIRS
        return splits.tokens * outgoing.top_k < least * outgoing.slots_width * self.groups.topology.num_devices


def _at_source(own: torch.Tensor, back: torch.Tensor, token_of_own_row: torch.Tensor, cross: Stage) -> torch.Tensor:
    """`[T, H]` sum of each token's own node and the others, in this order."""
    return add_rows(own, token_of_own_row, cross.num_rows, (back, cross.source_of_row))
