"""What restricts the tokens of one answer, as the engine sees it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenConstraint(Protocol):
    """Says, token by token, what may come next; belongs to one answer and is used up by it.

    It must let an end token come only where the answer may end. Whoever makes it has to be told
    the end tokens, because they are the tokenizer's and the model's and not part of any text.
    """

    def mask(self, scores: Tensor) -> Tensor:
        """Return scores ``[1, V]`` with ``-inf`` for every token that may not come next.

        Raises:
            SelfExtendError: no token may come next, or the constraint can't go on.
        """
        ...

    def accept(self, token: int) -> None:
        """Note that this token, one of those that ``mask`` left, has come next."""
        ...

    @property
    def finished(self) -> bool:
        """Return whether the answer is whole, so that no token but an end could come next."""
        ...
