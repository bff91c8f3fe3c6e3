"""Which part of which document each token of a prompt came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenRanges:
    """For each token of a prompt's beginning, a document and a range of its characters.

    Within a document each token begins where the one before it ends. A token that holds only the
    rest of a character has an empty range at that character's end.

    Args:
        document: which document, counted from 0; -1 for titles, separators and the template.
        start: first character in the document's text.
        end: the character after the last.
    """

    document: Integers
    start: Integers
    end: Integers

    def __len__(self) -> int:
        return len(self.document)

    def of(self, token: int) -> tuple[int, int, int] | None:
        """Return (document, start, end) of one token; None where it holds none of a document."""
        document = int(self.document[token])
        return None if document < 0 else (document, int(self.start[token]), int(self.end[token]))

    def within_other(self, tokens: Sequence[int], others: Sequence[int]) -> TokenRanges | None:
        """Return the ranges of other tokens that differ before the first document alone.

        A template may write the date there.

        Args:
            tokens: those that these ranges are of.
            others: the tokens to have ranges of.

        Returns:
            None if they differ elsewhere too.
        """
        held = np.flatnonzero(self.document >= 0)
        kept = len(tokens) - (int(held[0]) if len(held) else 0)
        if kept > len(others) or tuple(tokens[-kept:]) != tuple(others[-kept:]):
            return None
        shift = len(others) - kept
        return TokenRanges(
            np.concatenate([np.full(shift, -1), self.document[-kept:]]),
            np.concatenate([np.zeros(shift, np.int64), self.start[-kept:]]),
            np.concatenate([np.zeros(shift, np.int64), self.end[-kept:]]),
        )

    @classmethod
    def within(
        cls, ends: list[int], begins: list[int], starts: list[int], stops: list[int]
    ) -> TokenRanges | None:
        """Return ranges from where tokens end in a text that holds documents, in order.

        Args:
            ends: the character before which each token ends; it begins where the last one ended.
            begins: where in the text each document's character 0 is, or would be.
            starts: the first character of each document that the text has.
            stops: the character after its last.

        Returns:
            None if one token holds parts of two documents, which can't be separated.
        """
        last = np.asarray(ends, dtype=np.int64)
        first = np.concatenate([np.zeros(1, np.int64), last[:-1]]) if len(last) else last
        begin, start, stop = (np.asarray(x, dtype=np.int64) for x in (begins, starts, stops))
        # An empty range is the rest of a character that a token before it began.
        empty = first == last
        looked_up = np.where(empty, first - 1, first)
        found = np.searchsorted(stop, looked_up, side="right")
        known = np.minimum(found, len(stop) - 1)
        inside = (found < len(stop)) & (start[known] < last)
        following = np.append(start[1:], np.iinfo(np.int64).max)
        if bool((inside & (following[known] < last)).any()):
            return None
        return cls(
            np.where(inside, known, -1),
            np.where(inside, np.maximum(first, start[known]) - begin[known], 0),
            np.where(inside, np.minimum(last, stop[known]) - begin[known], 0),
        )
