"""Metrics for Prometheus, by its client library (the extra `grace-moe[metrics]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from grace_moe.adapt.status import AdaptStatus
from grace_moe.adapt.telemetry.traffic_view import TrafficView
from grace_moe.errors import MissingExtraError, UsageError

STATES = ("watching", "moving", "stopped")
_COUNTERS = {
    "steps": "Steps served.",
    "decisions": "Decisions to move or to stay.",
    "skipped": "Decisions to stay: a change was seen, and moving would not pay.",
    "migrations": "Migrations that every layer came through.",
    "rolled_back": "Migrations that ended before all layers had switched.",
    "layers_switched": "Layers that switched to other devices or shares.",
    "copies_moved": "Expert copies that were loaded and serve.",
}
"""Field of `AdaptStatus` -> what it counts."""


def require_metrics() -> None:
    """Raise MissingExtraError unless prometheus_client can be imported."""
    if find_spec("prometheus_client") is None:
        raise MissingExtraError("prometheus_client", "metrics")


class MetricsServer:
    """Serves `/metrics` until it is closed.

    The status is asked for at each scrape, so that a mover which died is seen dead however long ago it last wrote anything. An error in
    asking is itself the answer: not alive. So is no status: nothing adapts yet, or any more.
    """

    def __init__(
        self, status: Callable[[], AdaptStatus | None], view: Callable[[], TrafficView | None], *, copy_bytes: int, port: int
    ) -> None:
        """Serve on all addresses; port 0 takes a free one. `copy_bytes`: that a copy of a token sends there and back.

        Raises:
            MissingExtraError: prometheus_client is not installed.
            UsageError: the port can't be had.
        """
        require_metrics()
        from prometheus_client import CollectorRegistry, start_http_server

        self._status, self._view, self._copy_bytes = status, view, copy_bytes
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except (OSError, OverflowError) as error:
            raise UsageError(f"metrics: port {port} can't be had ({error}); give another, or 0 for a free one") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving, and wait until it has stopped."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Any]:
        """What the library asks for at a scrape."""
        try:
            status = self._status()
        except Exception:  # whoever scrapes must learn of it, and the log of the library is not where an operator looks
            status = None
        yield _gauge("alive", "Whether what decides and what moves still run, on every rank.", status is not None and status.alive)
        if status is not None:
            yield from _of_status(status)
        view = self._view()
        if view is not None:
            yield from _of_traffic(view, self._copy_bytes)


def _gauge(name: str, text: str, value: float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"grace_moe_{name}", text, value=float(value))


def _labelled(name: str, text: str, label: str, values: dict[str, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"grace_moe_{name}", text, labels=[label])
    for of, value in values.items():
        family.add_metric([of], float(value))
    return family


def _of_status(status: AdaptStatus) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily

    yield _labelled("state", "1 at the state of adaptation.", "state", {state: float(state == status.state) for state in STATES})
    for name, text in _COUNTERS.items():
        yield CounterMetricFamily(f"grace_moe_{name}", text, value=getattr(status, name))
    yield CounterMetricFamily("grace_moe_moved_bytes", "Bytes of the expert copies that were loaded.", value=status.bytes_moved)
    yield _gauge("plan_age_steps", "Steps since a layer last switched, or since the start.", status.plan_age_steps)
    yield _gauge("plan_since_timestamp_seconds", "Unix time of that moment.", status.plan_since)
    gain = {"expected": status.expected_gain} | ({} if status.measured_gain is None else {"measured": status.measured_gain})
    yield _labelled("gain_copies", "Copies per token and layer that the moves since the last change save.", "of", gain)
    yield _gauge("useless_decisions", "Decisions to move whose moves saved nothing, as measured last.", status.useless)


def _of_traffic(view: TrafficView, copy_bytes: int) -> Iterator[Any]:
    load = {str(device): value for device, value in enumerate(view.device_load)}
    yield _labelled("device_load_ratio", "Load of a device over the mean, mean over layers.", "device", load)
    yield _gauge("active_experts", "Most distinct experts that a device computed in a step, of the sampled tokens.", view.active_experts)
    sent = {"between_nodes": view.copies_between_nodes * copy_bytes, "inside_nodes": view.copies_inside_nodes * copy_bytes}
    yield _labelled("sent_bytes_per_token_layer", "Bytes that a token sends in a layer, there and back.", "tier", sent)
    balance = {"actual": view.balance} | ({} if view.predicted_balance is None else {"predicted": view.predicted_balance})
    yield _labelled("balance_ratio", "Load of the busiest device over the mean.", "of", balance)
    yield _gauge("gain_left_copies", "Copies per token and layer that the last decision saw and left.", view.gain_left)
    yield _gauge("saved_ratio", "Saved since the start, moves taken off, of what the first plan would have cost.", view.saved_share)
