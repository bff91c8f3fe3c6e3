"""A running grammar as the engine's `TokenConstraint`."""

from __future__ import annotations

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from selfextend_rag.errors import ConstraintError


class GrammarConstraint:
    """Where one answer stands in its grammar.

    Args:
        matcher: the grammar, at its start.
        ends: tokens that end an answer; some may be beyond the vocabulary.
    """

    def __init__(self, matcher: LLMatcher, ends: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = False

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with ``-inf`` for every token that the grammar rules out.

        Raises:
            ConstraintError: the grammar came to its limits, or leaves no token.
        """
        allowed = self._allowed(scores.shape[-1]).to(scores.device)
        return scores.masked_fill(~allowed, float("-inf"))

    def accept(self, token: int) -> None:
        """Note the next token.

        Raises:
            ConstraintError: the grammar does not allow it.
        """
        if token in self._ends and self._matcher.is_accepting():
            self._ended = True
        elif not self._matcher.consume_token(token):
            raise ConstraintError(
                f"token {token} can't follow in the grammar of this answer: "
                f"{self._matcher.get_error()[:300]}"
            )

    @property
    def finished(self) -> bool:
        """Return whether nothing but an end token could follow."""
        return self._ended or (self._matcher.is_stopped() and not self._matcher.is_error())

    def _allowed(self, width: int) -> Tensor:
        """Return ``[V]``, true for tokens that may come; those beyond the vocabulary may not."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise ConstraintError(
                f"the grammar of this answer came to its limits: {self._matcher.get_error()[:300]};"
                " use a simpler schema"
            )
        found = np.unpackbits(bits, bitorder="little")[:width]
        allowed = np.zeros(width, dtype=bool)
        allowed[: len(found)] = found
        if self._matcher.is_accepting():
            allowed[[end for end in self._ends if end < width]] = True
        if not allowed.any():
            raise ConstraintError(
                "no token of the vocabulary can follow in the grammar of this answer; the "
                "vocabulary lacks a character that the schema asks for"
            )
        return torch.from_numpy(allowed)
