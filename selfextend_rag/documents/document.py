"""Documents: whole texts, the files they come from, and how they relate to a question."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from selfextend_rag.documents.encoding import LONE_SURROGATE, Content, decode, normalize_newlines
from selfextend_rag.documents.html import declared_encoding, read_html
from selfextend_rag.documents.pdf import read_pdf
from selfextend_rag.errors import DocumentError

logger = logging.getLogger(__name__)

_EXTENSIONS = {
    **{".md": "markdown", ".markdown": "markdown", ".pdf": "pdf"},
    **{".html": "html", ".htm": "html", ".xhtml": "html"},
}

# Kinds that are no text, by their first bytes; a ZIP archive is looked at more closely.
_SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office file (.doc, .xls or .ppt)"),
    (b"{\\rtf", "a Rich Text file (.rtf)"),
    (b"%!PS", "a PostScript file"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ID3", "an MP3 recording"),
)
_ZIP_MEMBERS = {
    "word/document.xml": "a Word document (.docx)",
    "xl/workbook.xml": "an Excel workbook (.xlsx)",
    "ppt/presentation.xml": "a PowerPoint presentation (.pptx)",
    "META-INF/container.xml": "an EPUB book (.epub)",
    "content.xml": "an OpenDocument file (.odt, .ods or .odp)",
}

_HTML_START = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body|title|meta)\b",
    re.IGNORECASE | re.DOTALL,
)
_TAG = re.compile(r"<(?:[a-z][a-z0-9]*[\s/>]|!--)", re.IGNORECASE)
_MARKDOWN_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$")
# Scripts without spaces between words count by character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text to read, and where it comes from; see ``from_file`` and ``from_text``.

    Two documents are equal when their text, title, id and source are; metadata does not count.

    Args:
        text: the text, never blank; line ends are ``\\n``.
        title: a name for people and prompts; may be empty.
        id: stable name of the content, the same on every machine and run.
        source: where it was read from, as it was given; None when there was no file.
        metadata: more about the document, JSON values by preference; copied.

    Raises:
        DocumentError: the text is blank, or text or title holds a lone surrogate, which no
            tokenizer accepts.
    """

    text: str
    title: str
    id: str
    source: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        name = self.source or self.title or "the document"
        if not self.text.strip():
            raise DocumentError(f"{name} has no text; leave it out, or give it some")
        for what, text in (("", self.text), ("the title of ", self.title)):
            if surrogate := LONE_SURROGATE.search(text):
                raise DocumentError(
                    f"{what}{name!a} holds the lone surrogate {surrogate.group()!r} at character "
                    f"{surrogate.start()}, which is no text; decode the original bytes again"
                )
        object.__setattr__(self, "metadata", dict(self.metadata))

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        title: str = "",
        source: str | None = None,
        id: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> Document:
        """Return a document of this text, with line ends ``\\r\\n`` and ``\\r`` made ``\\n``.

        Args:
            text: the whole text; nothing but its line ends is changed.
            title: a name for people and prompts.
            source: where it comes from, such as a path or an address.
            id: a name of your own; by default 16 hexadecimal digits of the text's SHA-256.
            metadata: more about the document.

        Raises:
            DocumentError: the text is blank, or holds a lone surrogate.
        """
        text = normalize_newlines(text)
        if id is None:
            id = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return cls(text, title, id, source, metadata or {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, encoding: str | None = None) -> Document:
        """Return the document in a text, Markdown, HTML or PDF file.

        What the file is, its content says first and its name second. Plain text and Markdown are
        kept as they are. Of HTML, scripts, styles, navigation and drawings are left out, and
        headings, lists and table rows are written as in Markdown. Of a PDF, the text of
        every page is taken; there is no text recognition.

        ``metadata`` has ``format`` (``text``, ``markdown``, ``html``, ``pdf``) and, but for PDF,
        ``encoding`` and ``encoding_from`` (``given``, ``byte order mark``, ``content``,
        ``declaration``, ``guess``; a guess is logged as a warning); for HTML also
        ``removed_elements`` (how many of each); for PDF ``pages``, ``pages_without_text`` (their
        numbers, from 1; logged as a warning), ``page_offsets`` (where in the text each page
        starts) and ``unreadable_characters``.

        Args:
            path: the file.
            encoding: its character encoding, when you know better than detection does; PDF files
                have their own and ignore it.

        Raises:
            DocumentError: there is no such file, it is empty, binary or damaged, its kind is not
                one of these four, or it has no text.
        """
        content = _read_file(path, encoding)
        # A name that is no text, as file names may be, still makes a title that is.
        title = LONE_SURROGATE.sub("\ufffd", content.title)
        return cls.from_text(
            content.text, title=title, source=os.fsdecode(path), metadata=content.metadata
        )


def _read_file(path: str | os.PathLike[str], encoding: str | None) -> Content:
    """Return the text, title and metadata of a file, as ``Document.from_file`` describes them."""
    name = os.fsdecode(path)
    data = _read_bytes(name)
    _refuse_unsupported(data, name)
    if b"%PDF-" in data[:1024]:
        kind, content = "pdf", read_pdf(data, name)
    else:
        kind, content = _read_text(data, name, encoding)
    named = _EXTENSIONS.get(Path(name).suffix.lower())
    if named is not None and named != kind:
        logger.warning("%s is named like %s but was read as the %s it is", name, named, kind)
    title = content.title or Path(name).stem
    return Content(content.text, title, {"format": kind, **content.metadata})


def _read_bytes(name: str) -> bytes:
    try:
        mode = os.stat(name).st_mode
        # Opening a device could wait or read for ever; a pipe is as good as a file.
        data = Path(name).read_bytes() if stat.S_ISREG(mode) or stat.S_ISFIFO(mode) else None
    except FileNotFoundError as error:
        raise DocumentError(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DocumentError(f"{name!r} can't be read ({reason}); check the path") from error
    if data is None:
        kind = "a folder; name the files in it" if stat.S_ISDIR(mode) else "a device; name a file"
        raise DocumentError(f"{name} is {kind}")
    if not data:
        raise DocumentError(f"{name} is empty (0 bytes); leave it out, or give the full file")
    return data


def _refuse_unsupported(data: bytes, name: str) -> None:
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "a WebP image"
    elif kind == "a ZIP archive":
        with suppress(zipfile.BadZipFile, ValueError, NotImplementedError):
            members = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
            kind = next((says for name, says in _ZIP_MEMBERS.items() if name in members), kind)
    if kind is None:
        return
    raise DocumentError(
        f"{name} is {kind}, which can't be read; save what it says as PDF, HTML, Markdown or plain "
        "text and read that"
    )


def _read_text(data: bytes, name: str, encoding: str | None) -> tuple[str, Content]:
    """Return whether bytes are text, Markdown or HTML, and what they say."""
    named = _EXTENSIONS.get(Path(name).suffix.lower())
    may_declare = named == "html" or data.lstrip()[:1] == b"<"
    declared = declared_encoding(data) if may_declare else None
    content = decode(data, name, given=encoding, declared=declared)
    if content.metadata["encoding_from"] == "guess":
        logger.warning(
            "%s is not UTF-8 and was read as %s, which is a guess; pass encoding= to choose",
            *(name, content.metadata["encoding"]),
        )
    text = normalize_newlines(content.text)
    if not text.strip():
        raise DocumentError(f"{name} holds only white space; leave it out, or give the full file")
    if _HTML_START.match(text) or (named == "html" and _TAG.search(text)):
        page = read_html(text, name)
        return "html", page._replace(metadata={**content.metadata, **page.metadata})
    if named == "markdown":
        return "markdown", content._replace(title=_markdown_title(text))
    return "text", content


def _markdown_title(text: str) -> str:
    """Return the first heading outside code blocks, in either of Markdown's two forms."""
    fence, previous = "", ""
    for line in text.splitlines():
        mark = _MARKDOWN_FENCE.match(line)
        if fence:
            fence = "" if mark and mark.group(1).startswith(fence) else fence
            continue
        if mark:
            fence = mark.group(1)
        elif heading := _MARKDOWN_HEADING.match(line):
            return heading.group(1).strip()
        elif previous and re.fullmatch(r" {0,3}=+\s*", line):
            return previous
        previous = line.strip()
    return ""


def word_relevance(question: str, texts: Sequence[str]) -> list[float]:
    """Return the BM25 score of each text; 0 for all when they share no word with the question.

    Raises:
        ImportError: bm25s is not installed; the extras of the frameworks bring it.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "ranking documents by their words needs bm25s, which is not installed; install it "
            "with: pip install bm25s (the extras langchain and llama-index bring it), or rank by "
            "embeddings"
        ) from error
    corpus = [_WORD.findall(text.lower()) for text in texts]
    known = {word for words in corpus for word in words}
    asked = [word for word in _WORD.findall(question.lower()) if word in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]
