"""One lock per model: its attention settings and the caches it fills are state of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_SECONDS_BETWEEN_LOOKS = 0.1


class ModelLock:
    """The right to run or change one model; waiting for it can be cancelled.

    A thread that holds it and asks for another run would wait for itself for ever, so that is
    refused. Another thread may release it, as happens when an abandoned generation is collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def hold(self, cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock within the block; yields False, at once, if cancelled before it was free.

        Raises:
            RuntimeError: this thread holds it already.
        """
        self.refuse_holder()
        if not self._lock.acquire(blocking=False):
            # The caller's event or function can't wake this thread, so it is looked at.
            while not cancelled():
                if self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
                    break
            else:
                yield False
                return
        with self._held():
            yield True

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Hold the lock within the block, also where this thread holds it already."""
        if self._holder == threading.get_ident():
            yield
            return
        self._lock.acquire()
        with self._held():
            yield

    def refuse_holder(self) -> None:
        """Refuse a thread that holds the lock, and would wait for itself.

        Raises:
            RuntimeError: it does.
        """
        if self._holder == threading.get_ident():
            raise RuntimeError(
                "this thread has an unfinished generation on the same model, or is in a callback "
                "of one, so neither could continue; read it to its end or close it first"
            )

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self._lock.release()


_locks: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(model: nn.Module) -> ModelLock:
    """Return the lock that everything that runs or changes this instance shares."""
    with _guard:
        return _locks.setdefault(model, ModelLock())
