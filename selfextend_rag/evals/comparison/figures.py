"""What the questions of a comparison come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfextend_rag.evals.comparison.results import Compared, Reply, RetrievalUsed


@dataclass(frozen=True, slots=True)
class Figures:
    """What the questions come to."""

    questions: Sequence[Compared]
    retrieval: RetrievalUsed
    read_seconds: float

    @property
    def both(self) -> list[tuple[Compared, Reply, Reply]]:
        """Return the questions that both sides answered."""
        return [
            (each, each.whole, each.retrieved)
            for each in self.questions
            if each.whole is not None and each.retrieved is not None
        ]

    @property
    def judged(self) -> list[tuple[Compared, Reply, Reply]]:
        """Return those of them whose right answers are known."""
        return [found for found in self.both if found[1].right is not None]

    def right(self) -> tuple[int, int]:
        """Return how often whole documents and retrieval were right."""
        judged = self.judged
        return sum(bool(x.right) for _, x, _ in judged), sum(bool(y.right) for _, _, y in judged)

    def alone(self) -> tuple[int, int]:
        """Return how often whole documents alone were right, and how often retrieval alone."""
        pairs = [(x.right, y.right) for _, x, y in self.judged]
        return pairs.count((True, False)), pairs.count((False, True))

    @property
    def chance(self) -> float:
        """Return how often chance makes such a difference or a larger one, by the sign test."""
        first, second = self.alone()
        return sign_test(first, second)

    def seconds(self) -> tuple[float, float]:
        """Return what all questions took, from whole documents with the reading, and retrieved."""
        whole = math.fsum(x.seconds for _, x, _ in self.both)
        return self.read_seconds + whole, math.fsum(y.seconds for _, _, y in self.both)

    @property
    def everything(self) -> bool:
        """Return whether retrieval brought all there is to each question."""
        of = self.retrieval.of_passages
        return all(sum(x.read for x in each.passages) == of for each, _, _ in self.both)


def sign_test(first: int, second: int) -> float:
    """Return how often fair coins fall so unevenly, or more so: two-sided, 1 without any."""
    tosses, fewer = first + second, min(first, second)
    tail = sum(math.comb(tosses, heads) for heads in range(fewer + 1))
    return min(1.0, tail / 2.0 ** (tosses - 1))


def count(number: int, what: str) -> str:
    """Return a number and what it counts."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
