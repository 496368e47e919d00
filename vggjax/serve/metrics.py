"""The figures that Prometheus reads from a service."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vggjax.evaluation.predict import MAX_BATCH

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = tuple(1 << power for power in range(MAX_BATCH.bit_length()))


class Metrics:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vggjax_requests", "Requests that were answered", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "vggjax_request_seconds", "From the head of a request to its answer", ["path"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.images = Counter(
            "vggjax_images", "Images by outcome: classified, or unusable", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.batch_images = Histogram(
            "vggjax_batch_images", "Images in a batch", buckets=_ROWS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "vggjax_batch_seconds", "Time of a batch", buckets=_SECONDS, registry=self.registry
        )
        self.held_images = Gauge(
            "vggjax_held_images", "Images that are decoded, wait, or are classified",
            registry=self.registry,
        )  # fmt: skip
        for outcome in ("classified", "unusable"):
            self.images.labels(outcome)

    def count_batch(self, images: int, rows: int, seconds: float) -> None:
        """Count a batch of `rows` rows, of which `images` are images."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)


class CountRequests:
    """ASGI middleware that counts each answer by path and status, and times it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]):
        """Wrap `app`; a path that is not in `paths` is counted as `other`."""
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), "500"

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - started)
