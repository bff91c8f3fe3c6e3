"""One at a time on a model: the attention settings and the caches are the model's state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from selfextend_rag.patch import current_settings, extend, extended, restore
from selfextend_rag.positions import SelfExtend

_SECONDS_BETWEEN_LOOKS = 0.1


class Turn:
    """The right to run one model; waiting for it can be cancelled.

    Not reentrant: a thread that asks again while it holds the turn has an open generation that
    it should have closed, and would wait for itself for ever, so that is refused. Another thread
    may give the turn back, as happens when an abandoned generation is collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def hold(self, cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Hold the turn within the block; yields False, at once, if cancelled before it came.

        Raises:
            RuntimeError: this thread already holds the turn.
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
        self._holder = threading.get_ident()
        try:
            yield True
        finally:
            self._holder = None
            self._lock.release()


_turns: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def turn_of(model: nn.Module) -> Turn:
    """Return the turn that everybody who runs this instance shares."""
    with _turns_lock:
        return _turns.setdefault(model, Turn())


@contextmanager
def attention(model: PreTrainedModel, settings: SelfExtend | None) -> Iterator[None]:
    """Run the block with these settings, or plain attention for None; then as it was before."""
    if settings is not None:
        with extended(model, settings):
            yield
        return
    before = current_settings(model)
    restore(model)
    try:
        yield
    finally:
        if before is not None:
            extend(model, before[0], impl=before[1])
