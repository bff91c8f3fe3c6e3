"""Documents to try the app with: copies of those in examples/documents.

The handbook was written for this project. The Elements database by Jay F. Kominek and the King
James Version are in the public domain; examples/documents/README.md says where they were taken.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from selfextend_rag.documents import Document

_FOLDER = Path(__file__).parent

NAMES = ("handbook.pdf", "elements.md", "genesis.txt")
"""The files: an invented handbook of pages, a table of elements, and Genesis 1-3."""


def data_of(name: str) -> bytes:
    """Return the bytes of a sample.

    Raises:
        KeyError: there is none of this name.
    """
    if name not in NAMES:
        raise KeyError(name)
    return (_FOLDER / name).read_bytes()


@cache
def described() -> tuple[dict[str, object], ...]:
    """Return name, title and length in characters of each sample."""
    documents = {name: Document.from_bytes(data_of(name), name) for name in NAMES}
    return tuple(
        {"name": name, "title": document.title, "characters": len(document.text)}
        for name, document in documents.items()
    )
