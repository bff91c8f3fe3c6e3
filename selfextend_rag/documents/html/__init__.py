"""From HTML to text that keeps the structure; other formats that hold HTML use it too."""

from selfextend_rag.documents.html.lines import numeral
from selfextend_rag.documents.html.page import labelled_item
from selfextend_rag.documents.html.reader import declared_encoding, read_html

__all__ = ["declared_encoding", "labelled_item", "numeral", "read_html"]
