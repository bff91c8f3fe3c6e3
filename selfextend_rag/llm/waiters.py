"""Tasks of any event loop that wait for what a thread does, without a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class Waiters:
    """Who waits, and on which loop; each is woken once something has changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait, with the event loop free, until ``ready()`` is true.

        Args:
            ready: looked at in the loop, now and after each ``wake``; a change that could make it
                true must come before a ``wake``.
        """
        loop = asyncio.get_running_loop()
        while not ready():
            changed = loop.create_future()
            with self._lock:
                self._waiting[changed] = loop
            try:
                # A change between the look above and the entry would otherwise be missed.
                if not ready():
                    await changed
            finally:
                with self._lock:
                    self._waiting.pop(changed, None)

    def wake(self) -> None:
        """Let everybody who waits look again; from any thread."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for changed, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(_finish, changed)
            except RuntimeError:  # its loop is closed, so nobody waits there any more
                continue


def _finish(changed: asyncio.Future[None]) -> None:
    if not changed.done():
        changed.set_result(None)
