"""Errors of this package that are also the framework's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError

from selfextend_rag import ContextBudgetExceeded


class ContextWindowExceeded(ContextBudgetExceeded, ContextOverflowError):
    """A prompt and its answer do not fit the extended window; no model has run.

    Both LangChain's error for this case, which its middleware reacts to, and the core's, which has
    the figures: ``needed``, ``available``, ``group_size``, ``excess`` and ``remedies``.
    """

    @classmethod
    def of(cls, error: ContextBudgetExceeded) -> ContextWindowExceeded:
        """Return the same error as one of LangChain's too."""
        return cls(
            error.args[0],
            needed=error.needed,
            available=error.available,
            group_size=error.group_size,
            neighbor_window=error.neighbor_window,
            remedies=error.remedies,
        )


@contextmanager
def overflow_of_the_framework() -> Iterator[None]:
    """Raise what does not fit as `ContextWindowExceeded`."""
    try:
        yield
    except ContextBudgetExceeded as error:
        if isinstance(error, ContextWindowExceeded):
            raise
        raise ContextWindowExceeded.of(error) from error
