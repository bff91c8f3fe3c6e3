"""What a run carries from its caller down to the model, and what an answer cost in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and the tokens to read, after each chunk."""

Cancelled = threading.Event | Callable[[], bool] | None
"""Looked at between chunks and tokens: an event, or a function that says whether to stop."""

Reserve = Callable[[SelfExtendCache], None]
"""Called with the cache that will grow, before anything runs; raises where memory lacks space."""


class Observer(Protocol):
    """Watches the model's attention while it makes the answers of a run, counted from 0."""

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[object]:
        """Watch within the block; the model is set up, and stays what it is."""
        ...

    def running(self, answers: Sequence[int]) -> None:
        """Note whose tokens come next: those of one answer, or one token of each of several."""
        ...

    def is_due(self, answer: int) -> bool:
        """Return whether so much has been noted of an answer that it should be weighed now."""
        ...

    def weigh(self, answer: int, *, ended: bool) -> None:
        """Weigh what was noted of an answer; the cache holds all of its tokens at this moment."""
        ...


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the caller of a run wants to hear of it, and may stop it by.

    Args:
        progress: called after each chunk of a prompt.
        cancelled: looked at between chunks and tokens; see `is_cancelled`.
        reserve: called once the model is free and nothing has run.
        observer: watches the model's attention.
    """

    progress: Progress | None = None
    cancelled: Callable[[], bool] = _never
    reserve: Reserve | None = None
    observer: Observer | None = None

    def shifted(self, by: int, total: int) -> Run:
        """Return a run that reports its progress with so many tokens more, out of ``total``."""
        report = self.progress
        if report is None:
            return self
        return replace(self, progress=lambda done, _: report(done + by, total))


def is_cancelled(cancelled: Cancelled) -> Callable[[], bool]:
    """Return a way to ask whether to stop, whichever form it was given in."""
    if cancelled is None:
        return _never
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled


FinishReason = Literal["stop", "length", "cancelled"]
"""How an answer ended: the model or a stop text ended it, it was full, or it was cancelled."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one answer cost.

    Args:
        prompt_tokens: tokens of the prompt, the cached ones included.
        cached_tokens: tokens of the prompt that had been read before.
        completion_tokens: tokens generated, without the one that ended the answer.
        prefill_seconds: from the start of reading to the first token.
        decode_seconds: from the first token to the last.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def total_tokens(self) -> int:
        """Return the tokens of prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of decoding after the first token; 0 when there was no second."""
        if self.completion_tokens < 2 or self.decode_seconds <= 0:
            return 0.0
        return (self.completion_tokens - 1) / self.decode_seconds

    def to_dict(self) -> dict[str, int | float]:
        """Return the figures as JSON values, the derived ones too."""
        derived = {
            "total_tokens": self.total_tokens,
            "tokens_per_second": self.tokens_per_second,
        }
        return {**asdict(self), **derived}


class Tally:
    """What a running answer has come to."""

    def __init__(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = cached_tokens
        self.tokens: list[int] = []
        self._prompt_tokens = prompt_tokens
        self._started: float | None = None
        self._first: float | None = None
        self._latest: float | None = None

    def start(self) -> None:
        """Start the clock, if it has not started."""
        self._started = self._started or time.perf_counter()

    def tick(self) -> None:
        """Note that a token has been picked."""
        self._latest = time.perf_counter()
        self._first = self._first or self._latest

    def finish(self, reason: FinishReason) -> None:
        """Stop the clock and note how the answer ended."""
        self._latest = self._latest or time.perf_counter()
        self.finish_reason = reason

    def usage(self) -> Usage:
        """Return what the answer cost so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.tokens),
            prefill_seconds=self._prefill_seconds(),
            decode_seconds=self._decode_seconds(),
        )

    def _prefill_seconds(self) -> float:
        """Return the time to the first token; so far, or to the end, when there was none."""
        if self._started is None:
            return 0.0
        return (self._first or self._latest or time.perf_counter()) - self._started

    def _decode_seconds(self) -> float:
        if self._first is None or self._latest is None:
            return 0.0
        return self._latest - self._first
