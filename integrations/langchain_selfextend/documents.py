"""LangChain documents as the core's, and the whole documents that passages come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Literal

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document as LangChainDocument

from selfextend_rag import Document, SkippedFile, frameworks, read_documents

BETWEEN_PARTS = "\n\n"


def core_document(document: LangChainDocument) -> Document:
    """Return a document as the core takes it; ``title`` and ``source`` come from the metadata.

    So do the remarks and locations of `FileLoader`, and the page of a loader of pages.

    Raises:
        DocumentError: it has no text.
    """
    source = document.metadata.get("source")
    source = None if source is None else str(source)
    return frameworks.core_document(
        document.page_content,
        document.metadata,
        title=str(document.metadata.get("title") or (PurePath(source).name if source else "")),
        source=source,
        id=document.id,
    )


def whole_documents(
    parts: Iterable[LangChainDocument], source_key: str = "source"
) -> list[LangChainDocument]:
    """Return one document for each source, its parts joined by blank lines in their order.

    Loaders give PDF files by pages. What belongs to parts (``page``) is left out of the metadata,
    where each page begins is its ``locations``, and what they agree on is kept. Documents without a
    source stay as they are.
    """
    groups: dict[object, list[LangChainDocument]] = {}
    for part in parts:
        groups.setdefault(part.metadata.get(source_key, id(part)), []).append(part)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(parts: Sequence[LangChainDocument]) -> LangChainDocument:
    several = [(part.page_content, part.metadata) for part in parts]
    text, metadata = frameworks.joined(several, BETWEEN_PARTS)
    return LangChainDocument(page_content=text, metadata=metadata)


def parents_of(
    hits: Sequence[LangChainDocument],
    documents: Sequence[LangChainDocument],
    source_key: str = "source",
) -> list[int]:
    """Return which whole documents some passages come from, the best passage's first.

    A passage belongs to the documents with its source, or to the one whose id is its source or is
    its own id.

    Raises:
        ValueError: a passage comes from none of the documents.
    """
    places: dict[object, list[int]] = {}
    for place, document in enumerate(documents):
        names = {document.metadata.get(source_key), document.id} - {None}
        for name in names:
            places.setdefault(name, []).append(place)
    found: dict[int, None] = {}
    for hit in hits:
        source = hit.metadata.get(source_key)
        whole = places.get(source) if source is not None else None
        whole = whole or places.get(hit.id)
        if not whole:
            raise ValueError(
                f"a passage with {source_key} {source!r} and id {hit.id!r} comes from none of the "
                f"{len(documents)} whole documents; give its document too, or name the metadata "
                "that both share with source_key="
            )
        found.update(dict.fromkeys(whole))
    return list(found)


class FileLoader(BaseLoader):
    """Loads files whole, one document each, also those in folders and ZIP archives.

    What is found there and can't be read is logged, and is in ``skipped``, with the reason.

    Args:
        paths: files, folders and archives; see ``selfextend_rag.read_documents``.
        glob: which files of folders and archives to read, such as ``*.pdf``; all by default.
        encoding: their character encoding; found out by default.
        ocr: recognise the text of pages that are pictures; off by default.
        strict: refuse a file with remarks as severe as this; see ``Document.from_file``.
        progress: called with pages read and pages in all, of each PDF.
        pages: ``"auto"`` or ``"images"`` to have pages, and files that are pictures, as pictures
            for a vision model; they are in the metadata. See ``Document.from_file``.

    Raises:
        DocumentError: a file can't be read, or has no text; while loading.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        glob: str | None = None,
        encoding: str | None = None,
        ocr: bool = False,
        strict: bool | Literal["note", "warning", "loss"] = False,
        progress: Callable[[int, int], None] | None = None,
        pages: Literal["text", "auto", "images"] = "text",
    ) -> None:
        self.paths, self.skipped = paths, list[SkippedFile]()
        self._options: Any = {
            **{"glob": glob, "encoding": encoding, "ocr": ocr, "strict": strict},
            **{"progress": progress, "pages": pages},
        }

    def lazy_load(self) -> Iterator[LangChainDocument]:
        """Yield the documents.

        Their metadata has ``source``, ``title``, what the core knows of the file, the ``remarks``
        on what the text does not say, the ``locations`` it comes from, and the ``pictures`` it has,
        as JSON values.
        """
        self.skipped = []
        for path in self.paths:
            found = read_documents(path, **self._options)
            self.skipped += found.skipped
            for document in found.documents:
                named = {"source": document.source, "title": document.title}
                metadata = {**document.metadata, **named, **frameworks.file_notes(document)}
                yield LangChainDocument(page_content=document.text, metadata=metadata)
