"""From PDF to text, page by page; there is no text recognition."""

from __future__ import annotations

import io
import logging
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pypdf import PageObject, PdfReader
from pypdf.generic import ArrayObject, DictionaryObject

from selfextend_rag.documents.content import (
    LONE_SURROGATE,
    Content,
    Location,
    Remark,
    normalize_newlines,
)
from selfextend_rag.errors import DocumentError

_DEFLATED = ("/FlateDecode", ["/FlateDecode"])
_LONGEST_CONTENT = 1 << 28  # bytes of a page that are checked


def read_pdf(data: bytes, name: str) -> Content:
    """Return the text of a PDF, its pages separated by a blank line.

    Pages without text are counted, named in a log message, and left out; characters that the
    file's fonts map to nothing valid are written U+FFFD and counted. Pages whose compressed content
    is damaged are refused, though a part of their text could be had; other departures from the
    format, most of them harmless, are counted in a log message.

    Raises:
        DocumentError: the file is damaged, needs a password, or has no text at all.
    """
    try:
        with _collected() as remarks:
            pages, title = _extracted(data, name)
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # on damaged files pypdf raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _damaged(name, reason[:200]) from error
    lost = next((text for text in remarks if "decompress" in text), None)
    if lost is not None:
        raise _damaged(name, lost)
    content = _joined(pages, title, name)
    if remarks:
        says = (
            f"does not keep to the PDF format in {len(remarks)} place(s), the first: "
            f"{' '.join(remarks[0].split())[:200]}; compare what is read with what a viewer shows"
        )
        repaired = Remark("departures from the format", says, "warning", len(remarks))
        content = replace(content, remarks=(*content.remarks, repaired))
    return content


@contextmanager
def _collected() -> Iterator[list[str]]:
    """Collect what pypdf logs in this thread about what it repairs."""
    found: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                found.append(record.getMessage())

    handler, log = Collector(), logging.getLogger("pypdf")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


def _extracted(data: bytes, name: str) -> tuple[list[str], str]:
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise DocumentError(
            f"{name} is encrypted with a password; save a copy without one (qpdf --decrypt does "
            "it) and read that"
        )
    for number, page in enumerate(reader.pages, 1):
        _check_whole(page, number)
    pages = [page.extract_text() for page in reader.pages]
    tree = reader.root_object["/Pages"].get_object()
    stated = tree.get("/Count") if isinstance(tree, DictionaryObject) else None
    if str(stated) != str(len(pages)):
        raise _damaged(name, f"it states {stated} pages, and {len(pages)} can be found")
    return pages, str(reader.metadata.title or "") if reader.metadata else ""


def _check_whole(page: PageObject, number: int) -> None:
    """Refuse a page drawn by compressed streams that are damaged; pypdf takes what it finds."""
    contents = page.get("/Contents")
    contents = contents.get_object() if contents is not None else None
    for part in contents if isinstance(contents, ArrayObject) else [contents]:
        stream = part.get_object() if part is not None else None
        if not isinstance(stream, DictionaryObject) or stream.get("/Filter") not in _DEFLATED:
            continue
        compressed = getattr(stream, "_data", None)
        try:
            if isinstance(compressed, bytes):
                zlib.decompressobj().decompress(compressed, _LONGEST_CONTENT)
        except zlib.error as error:
            raise ValueError(f"the content of page {number} is damaged: {error}") from error


def _joined(pages: list[str], title: str, name: str) -> Content:
    unreadable = sum(len(LONE_SURROGATE.findall(page)) for page in pages)
    pages = [LONE_SURROGATE.sub("\ufffd", normalize_newlines(page)).strip() for page in pages]
    empty = [number for number, page in enumerate(pages, 1) if not page]
    if len(empty) == len(pages):
        raise DocumentError(
            f"{name} has no text on any of its {len(pages)} page(s), as a scan has none; run text "
            "recognition on it first (ocrmypdf does it) and read the result"
        )
    remarks = []
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        says = (
            f"{len(empty)} of {len(pages)} pages have no text (pictures or blank) and are missing "
            f"from the document: {shown}"
        )
        remarks.append(Remark("pages without text", says, "loss", len(empty)))
    if unreadable:
        says = f"{unreadable} characters could not be read and are written U+FFFD"
        remarks.append(Remark("unreadable characters", says, "loss", unreadable))
    text = ""
    offsets: list[int] = []
    for page in pages:
        text += "\n\n" if offsets and page else ""
        offsets.append(len(text))
        text += page
    metadata = {"pages": len(pages), "pages_without_text": empty}
    locations = tuple(
        Location(start, f"page {number}")
        for number, start in enumerate(offsets, 1)
        if pages[number - 1]
    )
    return Content(text, " ".join(title.split()), metadata, tuple(remarks), locations)


def _damaged(name: str, reason: str) -> DocumentError:
    return DocumentError(
        f"{name} is a damaged or unusual PDF ({reason}); open it in a viewer, save it again as PDF "
        "or text, and read that"
    )
