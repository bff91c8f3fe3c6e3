"""A running answer: its tokens as they come, then how it ended and what it cost."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

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

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, the derived ones too."""
        derived = {
            "total_tokens": self.total_tokens,
            "tokens_per_second": self.tokens_per_second,
        }
        return {**asdict(self), **derived}


class Tally:
    """What a running answer has come to; written by the engine, read through `Generation`."""

    def __init__(self) -> None:
        self.finish_reason: FinishReason | None = None
        self.cached_tokens = 0
        self.tokens: list[int] = []
        self._started: float | None = None
        self._first: float | None = None
        self._latest: float | None = None

    def start(self) -> None:
        """Start the clock: the model's turn has come."""
        self._started = time.perf_counter()

    def tick(self) -> None:
        """Note that a token has been picked."""
        self._latest = time.perf_counter()
        self._first = self._first or self._latest

    def finish(self, reason: FinishReason) -> None:
        """Stop the clock and note how the answer ended."""
        self._latest = self._latest or time.perf_counter()
        self.finish_reason = reason

    @property
    def prefill_seconds(self) -> float:
        """Return the time to the first token; so far, or to the end, when there was none."""
        if self._started is None:
            return 0.0
        return (self._first or self._latest or time.perf_counter()) - self._started

    @property
    def decode_seconds(self) -> float:
        """Return the time from the first token to the latest."""
        if self._first is None or self._latest is None:
            return 0.0
        return self._latest - self._first

    def usage(self, prompt_tokens: int) -> Usage:
        """Return what the answer to a prompt of so many tokens cost so far."""
        return Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.tokens),
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
        )


class Generation(Iterator[int]):
    """Token ids of one answer, as they are generated.

    Leaving off early needs ``close()``, or the model stays taken while this object lives; a
    ``with`` block does it.
    """

    def __init__(
        self,
        tokens: Generator[int, None, None],
        tally: Tally,
        prompt_tokens: int,
    ) -> None:
        self._tokens = tokens
        self._tally = tally
        self._prompt_tokens = prompt_tokens

    def __next__(self) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """End the answer here and free the model."""
        self._tokens.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return how the answer ended; None before its end."""
        return self._tally.finish_reason

    @property
    def usage(self) -> Usage:
        """Return what it cost so far."""
        return self._tally.usage(self._prompt_tokens)
