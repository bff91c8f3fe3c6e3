"""Where in the documents an answer comes from, by the model's own attention."""

from selfextend_rag.evidence.profile import attention_profile
from selfextend_rag.evidence.regions import Boxes, Heat
from selfextend_rag.evidence.spans import Evidence, TokenRanges, find_evidence

__all__ = [
    "Boxes",
    "Evidence",
    "Heat",
    "TokenRanges",
    "attention_profile",
    "find_evidence",
]
