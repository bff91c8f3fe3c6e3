"""One at a time on a model: the attention settings and the caches are the model's state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_SECONDS_BETWEEN_LOOKS = 0.1

_awaited: dict[int, int] = {}  # a thread, and the one it waits for


class Turn:
    """The right to run or change one model; waiting for it can be cancelled.

    A thread that asks for another run while it holds the turn has an open generation that it should
    have closed, and would wait for itself for ever, so that is refused; and so is the run of a
    thread that the holder waits for. Another thread may give the turn back, as happens when an
    abandoned generation is collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def hold(self, cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Hold the turn within the block; yields False, at once, if cancelled before it came.

        Raises:
            RuntimeError: this thread holds the turn, or the holder waits for this thread.
        """
        if self._holder == threading.get_ident():
            raise RuntimeError(
                "this thread has an unfinished generation on the same model; "
                "read it to its end or close it first"
            )
        while not self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
            if cancelled():
                yield False
                return
            self._refuse_a_circle()
        with self._held():
            yield True

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Hold the turn within the block, or be part of the turn that this thread holds."""
        if self._holder == threading.get_ident():
            yield
            return
        self._lock.acquire()
        with self._held():
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self._lock.release()

    def _refuse_a_circle(self) -> None:
        holder = self._holder
        if holder is not None and _awaited.get(holder) == threading.get_ident():
            raise RuntimeError(
                "whoever waits for this answer has an unfinished generation on the same model, so "
                "neither can go on; read that to its end or close it first"
            )


@contextmanager
def waiting_for(thread: threading.Thread) -> Iterator[None]:
    """Within the block, let it be known that this thread waits for another."""
    here = threading.get_ident()
    _awaited[here] = thread.ident or 0
    try:
        yield
    finally:
        del _awaited[here]


_turns: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def turn_of(model: nn.Module) -> Turn:
    """Return the turn that everybody who runs or changes this instance shares."""
    with _turns_lock:
        return _turns.setdefault(model, Turn())
