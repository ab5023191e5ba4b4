"""What the server counts, for Prometheus to fetch from ``/metrics``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ideomotor.extras import require

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_RECENT = 2048
QUANTILES = (0.5, 0.95, 0.99)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        prometheus = require("prometheus_client", "serve")
        self._prometheus, self.registry = prometheus, prometheus.CollectorRegistry()
        self._recent: deque[float] = deque(maxlen=_RECENT)
        counter, gauge, histogram = prometheus.Counter, prometheus.Gauge, prometheus.Histogram
        known: dict[str, Any] = {"namespace": "ideomotor", "registry": self.registry}
        self._requests = counter("requests", "Messages that were read from clients", **known)
        self._errors = counter("errors", "Requests that were refused or failed", ["code"], **known)
        self._rejected = counter("rejected", "Connections that were turned away", ["reason"], **known)
        self._latency = histogram(
            "latency_seconds", "From a request's arrival to its answer's handing over", buckets=_SECONDS, **known
        )
        self._infer = histogram("infer_seconds", "Of one forward pass", buckets=_SECONDS, **known)
        self._batch = histogram("batch_size", "Requests in one forward pass", buckets=_SIZES, **known)
        self._connections = gauge("connections", "Clients that are connected", **known)
        self._waiting = gauge("waiting", "Requests that are not answered yet", **known)
        self._waiting_bytes = gauge("waiting_bytes", "Bytes of the requests that are not answered yet", **known)
        self.registry.register(self)

    def show(
        self, connections: Callable[[], int], waiting: Callable[[], int], waiting_bytes: Callable[[], int]
    ) -> None:
        """Takes from where to read what is so at the moment."""
        self._connections.set_function(connections)
        self._waiting.set_function(waiting)
        self._waiting_bytes.set_function(waiting_bytes)

    def request(self) -> None:
        """Counts a message from a client."""
        self._requests.inc()

    def error(self, code: str) -> None:
        """Counts an error that a client was told."""
        self._errors.labels(code).inc()

    def rejected(self, reason: str) -> None:
        """Counts a connection that was turned away."""
        self._rejected.labels(reason).inc()

    def answered(self, seconds: float) -> None:
        """Notes how long a request took, from its arrival to the handing over of its answer."""
        self._latency.observe(seconds)
        self._recent.append(seconds)

    def batch(self, size: int, infer_seconds: float) -> None:
        """Notes a forward pass."""
        self._batch.observe(size)
        self._infer.observe(infer_seconds)

    def collect(self) -> Iterator[Any]:
        """Yields the latency's percentiles over the last requests (``ideomotor_latency_recent_seconds``)."""
        family = require("prometheus_client.core", "serve").GaugeMetricFamily(
            "ideomotor_latency_recent_seconds", f"Percentiles of the last {_RECENT} answers", labels=["quantile"]
        )
        if self._recent:
            recent = self.recent()
            for quantile in QUANTILES:
                family.add_metric([str(quantile)], recent[f"p{quantile * 100:.0f}"] / 1000)
        yield family

    def recent(self) -> dict[str, float]:
        """Returns how many answers the percentiles are over, and these in milliseconds: p50, p95, p99."""
        taken = list(self._recent)
        if not taken:
            return {"answers": 0}
        names, values = (f"p{quantile * 100:.0f}" for quantile in QUANTILES), np.quantile(taken, QUANTILES) * 1000
        return {"answers": len(taken), **dict(zip(names, map(float, values), strict=True))}

    def text(self) -> tuple[bytes, str]:
        """Returns all of them as Prometheus reads them, and their content type."""
        return self._prometheus.generate_latest(self.registry), self._prometheus.CONTENT_TYPE_LATEST
