"""Recording: the router's exact choices, taken where Transformers hands them to the experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from grace_moe.errors import ModelError
from grace_moe.runtime.model.description import num_experts_of
from grace_moe.runtime.model.placed_experts import experts_by_layer
from grace_moe.runtime.model.step import Step
from grace_moe.trace import RoutingTrace

RECORDING = "grace_recording"


class Recorder:
    """Collects ids and weights of every experts module; the outputs are those of the implementation it wraps."""

    def __init__(self, model: Any) -> None:
        self.layer_of_module = {id(module): layer for layer, module in experts_by_layer(model).items()}
        if not self.layer_of_module:
            raise ModelError(f"{model.config.model_type!r} has no experts that Transformers can be asked to record")
        self.num_experts = num_experts_of(model.config)
        self.layer_ids = tuple(sorted(self.layer_of_module.values()))
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

    def seen(self, module: torch.nn.Module, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> None:
        """One layer's choices, `[rows, k]`."""
        layer = self.layer_of_module[id(module)]
        if layer in self._layers:
            self._close_step()  # a pass that nobody announced
        self._layers[layer] = (topk_ids.detach().cpu().numpy(), topk_weights.detach().float().cpu().numpy())

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

    Transformers finds the function of the experts by name in a registry of the process: one model can be recorded at a time.

    Raises:
        ModelError: the model's experts don't go through Transformers' experts interface.
    """
    recorder = Recorder(model)
    before = model.get_experts_implementation()
    wrapped = before[""]

    def record(module: torch.nn.Module, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        recorder.seen(module, ids, weights)
        own_forward = _eager_forward(type(module))
        inner = ALL_EXPERTS_FUNCTIONS.get_interface(wrapped, own_forward)
        output: torch.Tensor = inner(module, hidden, ids, weights)
        return output

    ALL_EXPERTS_FUNCTIONS.register(RECORDING, record)
    try:
        model.set_experts_implementation(RECORDING)
        yield recorder
    except ValueError as error:
        raise ModelError(f"{model.config.model_type!r}: its experts can't be recorded ({error})") from error
    finally:
        model.set_experts_implementation(before)


def _eager_forward(experts_class: type[torch.nn.Module]) -> Callable[..., torch.Tensor]:
    """The class's own forward, under Transformers' decorator."""
    forward: Any = experts_class.forward
    return forward.__wrapped__  # type: ignore[no-any-return]
