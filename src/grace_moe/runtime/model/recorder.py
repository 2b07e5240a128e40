"""Recording: the router's exact choices, taken where its experts are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from grace_moe.errors import ModelError
from grace_moe.runtime.model.moe_layers import ExpertsOfLayer, experts_by_layer
from grace_moe.runtime.model.routing import chosen
from grace_moe.runtime.model.step import Step
from grace_moe.trace import RoutingTrace


class Recorder:
    """Collects ids and weights of every MoE layer; outputs are left alone."""

    def __init__(self, layers: dict[int, ExpertsOfLayer]) -> None:
        self.num_experts = next(iter(layers.values())).num_experts
        self.layer_ids = tuple(sorted(layers))
        self._step: Step | None = None
        self._layers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._ids: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._requests: list[np.ndarray] = []
        self._phases: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    def begin_step(self, step: Step) -> None:
        """Note which rows of the coming pass are real, and whose."""
        self._close_step()
        self._step = step

    def seen(self, layer: int, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> None:
        """One layer's choices, `[rows, k]`."""
        if layer in self._layers:
            self._close_step()  # a pass that nobody announced
        with torch.no_grad():
            ids = chosen(topk_ids, topk_weights, self.num_experts)
        self._layers[layer] = (ids.cpu().numpy(), topk_weights.detach().float().cpu().numpy())

    def _close_step(self) -> None:
        if not self._layers:
            return
        if set(self._layers) != set(self.layer_ids):
            raise ModelError(f"layers {sorted(set(self.layer_ids) - set(self._layers))} were not called in a forward pass")
        rows = len(self._layers[self.layer_ids[0]][0])
        step = self._step
        valid = np.ones(rows, dtype=bool) if step is None else step.valid.numpy()
        if len(valid) != rows:
            raise ModelError(f"the experts got {rows} rows, the step announced {len(valid)}")
        self._ids.append(np.stack([self._layers[i][0] for i in self.layer_ids], axis=1)[valid].astype(np.int16))
        self._weights.append(np.stack([self._layers[i][1] for i in self.layer_ids], axis=1)[valid].astype(np.float16))
        requests = np.zeros(rows, dtype=np.int32) if step is None else step.request_ids.numpy().astype(np.int32)
        self._requests.append(requests[valid])
        if step is not None:
            self._tokens.append(step.token_ids.numpy().astype(np.int32)[valid])
        self._phases.append(np.full(int(valid.sum()), 0 if step is None else step.phase, dtype=np.uint8))
        self._layers = {}

    def trace(self, *, model: str, dataset: str) -> RoutingTrace:
        """Everything so far, in the order of the passes.

        Raises:
            ModelError: no forward pass was recorded.
        """
        self._close_step()
        if not self._ids:
            raise ModelError("nothing was recorded: no forward pass was made")
        return RoutingTrace(
            topk_ids=np.concatenate(self._ids),
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
            model=model,
            dataset=dataset,
            request_ids=np.concatenate(self._requests),
            phase=np.concatenate(self._phases),
            topk_weights=np.concatenate(self._weights),
            token_ids=np.concatenate(self._tokens) if len(self._tokens) == len(self._ids) else None,
            source=f"recording of {model}",
        )


@contextmanager
def recording(model: Any) -> Iterator[Recorder]:
    """Record every forward pass of `model` inside the block; outputs are unchanged, and so is the model after it.

    Raises:
        ModelError: the model has no experts that we know how to find.
    """
    layers = experts_by_layer(model)
    recorder = Recorder(layers)
    handles = [_watch(experts, recorder) for experts in layers.values()]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _watch(experts: ExpertsOfLayer, recorder: Recorder) -> Any:
    """Tell the recorder of each call of a layer's experts; of an adapter's block, what its router says once more of the same input."""

    def called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        if experts.adapter is None:
            _, ids, weights = values[:3]
        else:
            with torch.no_grad():
                ids, weights = experts.adapter.choices(module, values[0].reshape(-1, values[0].shape[-1]))
        recorder.seen(experts.layer_id, ids, weights)

    return experts.module.register_forward_pre_hook(called, with_kwargs=True)
