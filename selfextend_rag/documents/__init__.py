"""Documents: text with a title and a stable id, made from files or from text.

No text is left out silently. What a format makes us leave out (scripts of a web page, pages of a
PDF that are pictures) is in ``Document.remarks``, and logged where it may matter; a file that
can't be read whole is refused with a :class:`DocumentError`.
"""

from selfextend_rag.documents.content import Location, Remark
from selfextend_rag.documents.document import Document, refuse_pictures, word_relevance
from selfextend_rag.documents.folders import ReadFiles, SkippedFile, read_documents
from selfextend_rag.documents.pictures import Picture
from selfextend_rag.errors import DocumentError, UnsupportedDocument

__all__ = [
    "Document",
    "DocumentError",
    "Location",
    "Picture",
    "ReadFiles",
    "Remark",
    "SkippedFile",
    "UnsupportedDocument",
    "read_documents",
    "refuse_pictures",
    "word_relevance",
]
