"""What is counted: exact answers, and negative log-likelihood by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def is_exact_match(generated: str, answer: str) -> bool:
    """Return whether the first line of the generated text is the answer, spaces around aside."""
    lines = generated.strip().splitlines()
    return bool(lines) and lines[0].strip() == answer


@dataclass(frozen=True)
class NllByPosition:
    """Mean negative log-likelihood, in nats per token, of tokens in bins of positions.

    Attributes:
        bin_starts: first position of each bin.
        means: the mean over all sequences in each bin.
    """

    bin_starts: tuple[int, ...]
    means: tuple[float, ...]


def nll_by_position(sequences: Sequence[Sequence[float]], bin_size: int) -> NllByPosition:
    """Return means over bins of ``bin_size`` positions of sequences of equal length.

    Entry i of a sequence belongs to the token at position i + 1, which i + 1 tokens precede.

    Raises:
        ValueError: no sequences, lengths that differ, or a bin size below 1.
    """
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or bin_size < 1:
        raise ValueError(f"need sequences of one length and a positive bin size, got {lengths}")
    length = lengths.pop()
    starts = range(0, length, bin_size)
    means = []
    for start in starts:
        values = [value for sequence in sequences for value in sequence[start : start + bin_size]]
        means.append(math.fsum(values) / len(values))
    return NllByPosition(tuple(start + 1 for start in starts), tuple(means))


def perplexity(nlls: Sequence[float]) -> float:
    """Return exp of the mean negative log-likelihood.

    Raises:
        ValueError: there are no values.
    """
    if not nlls:
        raise ValueError("perplexity needs at least one token")
    return math.exp(math.fsum(nlls) / len(nlls))
