"""How the tokens of an answer are chosen: its options, what constrains it, and the sampler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "stop": "also_stop",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """Length, sampling and stopping of one answer.

    Args:
        max_new_tokens: the most tokens to generate.
        temperature: 0 always takes the likeliest token, and the three filters below have no say.
        top_p: sample among the likeliest tokens that together have this probability.
        top_k: sample among this many tokens; 0 for all.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: above 1, what is in the prompt or the answer becomes less likely;
            documents are part of the prompt, so this hinders quoting them.
        seed: makes sampling repeatable; None draws a new one each time. No global state is used.
        stop: texts that end the answer, themselves left out; one string or several. They act
            where tokens become text, in ``llm``, and may begin and end anywhere within tokens.
        stop_token_ids: tokens that end the answer, themselves left out; None for those that
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
        stop = as_tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", as_tuple(self.stop_token_ids))
        texts = all(isinstance(text, str) and text for text in stop)
        seeds = self.seed is None or (_is_integer(self.seed) and -(1 << 63) <= self.seed < 1 << 64)
        ids = all(map(_is_integer, self.stop_token_ids or ()))
        rules = {
            "max_new_tokens": (_is_integer(self.max_new_tokens, 1), "a positive integer"),
            "temperature": (_is_number(self.temperature, 0), "0 or a positive number"),
            "top_p": (_is_number(self.top_p, 0, 1) and self.top_p > 0, "in (0, 1]"),
            "top_k": (_is_integer(self.top_k, 0), "an integer of at least 0"),
            "min_p": (_is_number(self.min_p, 0, 1), "in [0, 1]"),
            "repetition_penalty": (
                _is_number(self.repetition_penalty, 0) and self.repetition_penalty > 0,
                "a positive number",
            ),
            "seed": (seeds, "an integer of at most 64 bits or None"),
            "stop": (texts, "non-empty strings"),
            "stop_token_ids": (ids, "integers"),
        }
        for name, (right, expected) in rules.items():
            if not right:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")


def as_tuple(values: object) -> tuple[object, ...]:
    """Return values as a tuple; one alone, a text too, is one of them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return (values,)
    return tuple(values)


def _is_integer(value: object, least: float = -inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, least: float, most: float = sys.float_info.max) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def answer_options(*given: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, Any]:
    """Return a model's and a call's options under this package's names; later ones win.

    None counts as not given. Frameworks name ``max_new_tokens`` also ``max_tokens``, and their
    ``stop`` is ``also_stop``, which leaves a model's own end in force. ``others`` are passed on.

    Raises:
        TypeError: an option is not known.
        ValueError: one is out of range.
    """
    fields = GenerationSettings.__dataclass_fields__.keys()
    known = fields | _OTHER_NAMES.keys() | set(others)
    items = [item for options in given for item in options.items()]
    if unknown := sorted({name for name, _ in items} - known):
        takes = ", ".join(sorted(known))
        raise TypeError(f"unknown option {', '.join(unknown)}; a call takes {takes}")
    merged = {_OTHER_NAMES.get(k, k): value for k, value in items if value is not None}
    own = {name: merged[name] for name in merged if name in fields}
    stop = GenerationSettings(**own, stop=merged.get("also_stop", ())).stop
    return {**merged, "also_stop": stop} if stop else merged


class TokenConstraint(Protocol):
    """Says, token by token, what may come next; belongs to one answer and is used up by it.

    It must let an end token come only where the answer may end. Its maker has to know the end
    tokens, because they are the tokenizer's and the model's and not part of any text.
    """

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with ``-inf`` for every token that may not come next.

        Raises:
            SelfExtendError: no token may come next, or the constraint can't continue.
        """

    def accept(self, token: int) -> None:
        """Note that this token, one of those that ``mask`` left, has come next."""

    @property
    def finished(self) -> bool:
        """Return whether the answer is whole, so that no token but an end could come next."""


class Sampler:
    """Picks the tokens of one answer to a prompt, among those that the constraint leaves."""

    def __init__(
        self,
        options: GenerationSettings,
        prompt: Sequence[int],
        device: torch.device,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self._constraint = constraint
        self._greedy = options.temperature == 0
        self._processors = _processors(options)
        self._penalised = options.repetition_penalty != 1
        # tokens of pictures are negative, and no answer has them
        self._seen = {x for x in prompt if x >= 0} if self._penalised else set()
        self._generator = torch.Generator(device)
        seed = self._generator.seed() if options.seed is None else options.seed
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def pick(self, logits: Tensor) -> int:
        """Return the next token for logits ``[1, V]``."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._constraint is not None:
            scores = self._constraint.mask(scores)
        # The penalty asks which tokens occurred, not where: each is here once, in any order.
        seen = torch.tensor([sorted(self._seen)], dtype=torch.long, device=scores.device)
        scores = self._processors(cast(torch.LongTensor, seen), cast(torch.FloatTensor, scores))
        if self._greedy:
            token = int(scores.argmax(dim=-1))
        else:
            token = int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._penalised:
            self._seen.add(token)
        return token


def _processors(options: GenerationSettings) -> LogitsProcessorList:
    """Return the processors in the order in which ``transformers.generate`` applies them."""
    # each with its value, and the one at which it does nothing
    chain: list[tuple[Callable[..., LogitsProcessor], float, int]] = [
        (RepetitionPenaltyLogitsProcessor, options.repetition_penalty, 1),
        (TemperatureLogitsWarper, float(options.temperature), 1),
        (TopKLogitsWarper, options.top_k, 0),
        (TopPLogitsWarper, options.top_p, 1),
        (MinPLogitsWarper, options.min_p, 0),
    ]
    wanted = chain[:1] if options.temperature == 0 else chain
    return LogitsProcessorList(make(value) for make, value, idle in wanted if value != idle)
