"""Texts of a wanted number of tokens to hide facts in, and random values to hide."""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from selfextend_rag.evals.benchmarks.items import BenchmarkError, Tokens
from selfextend_rag.evals.prose import SENTENCE_BORDER, king_james

NOISE = "The field is wide. The river is slow. The lamp is warm. We walk on, and come home again."
"""Sentences that say nothing, repeated; our own in place of the benchmarks'."""

Built = TypeVar("Built")


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """What generated items are made for.

    Args:
        lengths: tokens of prompt and answer together.
        samples: items of each length, and of each place where there are several.
        seed: moves all of them.
        depths: how many places of a fact.

    Raises:
        ValueError: a number is not positive.
    """

    lengths: tuple[int, ...] = (4096,)
    samples: int = 20
    seed: int = 0
    depths: int = 10

    def __post_init__(self) -> None:
        for name in ("samples", "depths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)}")
        if min(self.lengths, default=0) < 1:
            raise ValueError(f"lengths must be positive integers, got {self.lengths}")


@cache
def sentences() -> tuple[str, ...]:
    """Return the sentences of the shipped prose (King James Bible)."""
    return tuple(s for s in SENTENCE_BORDER.split(" ".join(king_james().split())) if s)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return the words of the shipped prose in small letters, by the alphabet."""
    found = set(re.findall(r"\b[a-z]{4,12}\b", king_james()))
    return tuple(sorted(found))


def prose(count: int, start: int = 0) -> list[str]:
    """Return consecutive sentences of the shipped prose, from its start again after its end."""
    every = sentences()
    return [every[(start + place) % len(every)] for place in range(count)]


def hidden(body: Sequence[str], facts: Sequence[str], depths: Sequence[float]) -> list[str]:
    """Return sentences with facts among them, each at its depth from 0 to 1."""
    places = sorted((round(depth * len(body)), number) for number, depth in enumerate(depths))
    found: list[str] = []
    done = 0
    for place, number in places:
        found += [*body[done:place], facts[number]]
        done = place
    return [*found, *body[done:]]


def fitted(
    build: Callable[[int], Built], size: Callable[[Built], int], most: int, *, least: int = 1
) -> Built:
    """Return what is built of as many units as fit, or of so many that no half per cent is missing.

    Tokens are counted a few times alone, as a long text takes a while to tokenize.

    Args:
        build: makes it of a number of units; more of them never take fewer tokens.
        size: its tokens.
        most: tokens that it may have.
        least: units without which it makes no sense.

    Raises:
        BenchmarkError: even the least does not fit.
    """
    low, found, high = least, build(least), None
    used = size(found)
    if used > most:
        raise BenchmarkError(f"{most} tokens are too few for this task; it takes {used} at least")
    each = None  # tokens of a unit, known from two sizes on
    while high is None or high - low > 1:
        if each is not None and most - used <= max(2 * each, most // 200):
            break
        guess = 2 * low if each is None else low + max(1, int((most - used) / each))
        if high is not None and guess >= high:
            guess = (low + high) // 2
        made = build(guess)
        taken = size(made)
        each = max(0.01, (taken - used) / (guess - low))
        if taken > most:
            high = guess
        else:
            low, found, used = guess, made, taken
    return found


def digits(rng: random.Random, count: int) -> str:
    """Return a number of so many digits, the first of them not 0."""
    return rng.choice("123456789") + "".join(rng.choices(string.digits, k=count - 1))


def code(rng: random.Random) -> str:
    """Return a random UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def words(rng: random.Random, count: int) -> list[str]:
    """Return different words, joined in pairs where the vocabulary is too small."""
    every = vocabulary()
    if count <= len(every):
        return rng.sample(every, count)
    found: dict[str, None] = {}
    while len(found) < count:
        found[rng.choice(every) + rng.choice(every)] = None
    return list(found)


def two_words(rng: random.Random) -> str:
    """Return two words with a hyphen, as keys have."""
    return "-".join(rng.sample(vocabulary(), 2))


def counted(tokens: Tokens) -> Callable[[str], int]:
    """Return a function that counts the tokens of a prompt."""
    return lambda text: len(tokens.encode(text))
