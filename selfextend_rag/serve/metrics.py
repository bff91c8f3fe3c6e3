"""Figures for Prometheus, of one server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from selfextend_rag.engine import Usage
    from selfextend_rag.llm import KeptReadings
    from selfextend_rag.serve.admission import Admission
    from selfextend_rag.serve.bodies import Bodies
    from selfextend_rag.serve.files import FileStore

_PREFIX = "selfextend_rag"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts what a server does; ``text`` is what Prometheus reads."""

    def __init__(
        self, admission: Admission, bodies: Bodies, files: FileStore, readings: KeptReadings
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{_PREFIX}_requests",
            "requests by route and status",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            f"{_PREFIX}_request_seconds",
            "from a request to its end",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds",
            "from a request to the first text of its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            f"{_PREFIX}_tokens",
            "tokens of prompts and answers, by kind",
            ["kind"],
            registry=registry,
        )
        figures: tuple[tuple[str, str, Callable[[], int]], ...] = (
            ("requests_admitted", "requests that run or wait", lambda: admission.admitted),
            ("bodies_bytes", "bytes of requests that run or wait", lambda: bodies.held),
            ("files", "uploaded files", lambda: len(files)),
            ("files_bytes", "bytes of uploaded files", lambda: files.nbytes),
            ("readings_bytes", "bytes of kept readings", lambda: readings.nbytes),
        )
        for name, about, value in figures:
            Gauge(f"{_PREFIX}_{name}", about, registry=registry).set_function(value)

    def text(self) -> bytes:
        """Return all figures in the text form of Prometheus."""
        return generate_latest(self._registry)

    def count(self, usage: Usage) -> None:
        """Add the tokens of an answer."""
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("cached").inc(usage.cached_tokens)
        self.tokens.labels("completion").inc(usage.completion_tokens)


class Watch:
    """Measures one request, from when it is made."""

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._started = time.perf_counter()
        self._spoke = False

    def speak(self) -> None:
        """Note that text of the answer is there."""
        if not self._spoke:
            self._spoke = True
            self._metrics.first_token.observe(time.perf_counter() - self._started)

    def end(self, status: int) -> None:
        """Note how the request ended, by the status of HTTP."""
        self._metrics.requests.labels(self._route, str(status)).inc()
        self._metrics.seconds.labels(self._route).observe(time.perf_counter() - self._started)
