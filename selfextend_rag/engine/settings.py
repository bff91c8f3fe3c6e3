"""How an answer is to be generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Length, sampling and stopping of one answer.

    Args:
        max_new_tokens: the most tokens to generate.
        temperature: 0 always takes the likeliest token, and the three filters below have no say.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among this many tokens; 0 for all.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: above 1, what stands in the prompt or the answer becomes less likely;
            documents are part of the prompt, so this hinders quoting them.
        seed: makes sampling repeatable; None draws a new one each time. No global state is used.
        stop: texts that end the answer, themselves left out; one string or several. They act
            where tokens become text, in ``llm``, and may begin and end anywhere within tokens.
        stop_token_ids: tokens that end the answer, themselves left out; None stands for those
            the model names as its end.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check_numbers()
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop must hold non-empty strings, got {stop!r}")

    def _check_numbers(self) -> None:
        in_range = {
            "max_new_tokens": _is_integer(self.max_new_tokens) and self.max_new_tokens >= 1,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_p": 0 < self.top_p <= 1,
            "top_k": _is_integer(self.top_k) and self.top_k >= 0,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < float("inf"),
            "seed": self.seed is None
            or (_is_integer(self.seed) and -(1 << 63) <= self.seed < 1 << 64),
            "stop_token_ids": _all_integers(self.stop_token_ids or ()),
        }
        expected = {
            "max_new_tokens": "a positive integer",
            "temperature": "0 or a positive number",
            "top_p": "in (0, 1]",
            "top_k": "an integer of at least 0",
            "min_p": "in [0, 1]",
            "repetition_penalty": "a positive number",
            "seed": "an integer of at most 64 bits or None",
            "stop_token_ids": "integers",
        }
        for name, right in in_range.items():
            if not right:
                raise ValueError(f"{name} must be {expected[name]}, got {getattr(self, name)!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all_integers(values: Iterable[object]) -> bool:
    return all(_is_integer(value) for value in values)
