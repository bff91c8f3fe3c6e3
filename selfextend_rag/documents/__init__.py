"""Documents: text with a title and a stable id, made from files or from text.

No text is left out silently. What a format makes us leave out (scripts of a web page, pages of a
PDF that are pictures) is counted in ``metadata`` and, where it may matter, logged; a file that
can't be read whole is refused with a :class:`DocumentError`.
"""

from selfextend_rag.documents.document import Document, word_relevance
from selfextend_rag.errors import DocumentError

__all__ = ["Document", "DocumentError", "word_relevance"]
