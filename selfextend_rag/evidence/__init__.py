"""Where in the documents an answer comes from, by the model's own attention."""

from selfextend_rag.evidence.ranges import TokenRanges

__all__ = ["TokenRanges"]
