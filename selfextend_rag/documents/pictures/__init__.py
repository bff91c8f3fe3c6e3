"""Pictures in documents: their files decoded, checked and bounded, and handed to vision models."""

from selfextend_rag.documents.pictures.picture import (
    LONGEST_SIDE,
    MOST_PIXELS,
    Picture,
    size_reason,
)

__all__ = ["LONGEST_SIDE", "MOST_PIXELS", "Picture", "size_reason"]
