"""Documents: text with a title and a stable id, made from files or from text.

What the reader of a document can rely on: nothing of its text is left out in silence. What a
format makes us leave out (scripts of a web page, pages of a PDF that are pictures) is counted in
``metadata`` and, where it may matter, logged; a file that can't be read whole is refused with a
:class:`DocumentError`.
"""

from selfextend_rag.documents.document import Document
from selfextend_rag.documents.errors import DocumentError
from selfextend_rag.documents.relevance import word_relevance

__all__ = ["Document", "DocumentError", "word_relevance"]
