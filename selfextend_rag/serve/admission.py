"""How many requests are let in: one runs on the model, some wait, more are sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from selfextend_rag.serve.errors import ApiError, shutting_down

_LONGEST_RETRY = 60  # seconds
_WEIGHT = 0.2  # of the newest duration in their running mean


class Admission:
    """Counts the requests that use the model.

    The model works through them in the order in which they came.

    Args:
        max_waiting: how many may wait besides the one that runs.

    Attributes:
        admitted: requests that are in now.
        closing: set once the server stops; what is in ends soon, nothing is let in any more.
        ended: set when the time for what is in is over.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.admitted = 0
        self.closing = asyncio.Event()
        self.ended = asyncio.Event()
        self._mean_seconds = 1.0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let a request in, until the block is left.

        Raises:
            ApiError: as many wait as may (429, with ``Retry-After``), or the server stops (503).
        """
        if self.closing.is_set():
            raise shutting_down()
        if self.admitted > self.max_waiting:
            seconds = min(_LONGEST_RETRY, math.ceil(self._mean_seconds * self.admitted))
            raise ApiError(
                429,
                f"{self.admitted} requests are being answered or wait, which are as many as this "
                f"server takes; ask again in {seconds} s",
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(max(1, seconds))},
            )
        self.admitted += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            own = (time.perf_counter() - started) / self.admitted
            self._mean_seconds += _WEIGHT * (own - self._mean_seconds)
            self.admitted -= 1

    async def close(self, seconds: float) -> None:
        """Let nothing in any more, wait so long for what is in, and then have it end."""
        self.closing.set()
        until = time.monotonic() + seconds
        while self.admitted and time.monotonic() < until:
            await asyncio.sleep(0.05)
        self.ended.set()
