"""The one error of document loading."""

from __future__ import annotations

from selfextend_rag.errors import SelfExtendError


class DocumentError(SelfExtendError, ValueError):
    """A document that can't be had whole; one sentence: which, what was found, what to do."""
