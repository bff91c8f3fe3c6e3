"""Files: their bytes, what kind each is, and the reader of that kind."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from selfextend_rag.documents.content import Content, Pages, Remark
from selfextend_rag.documents.encoding import decode, normalize_newlines
from selfextend_rag.errors import DocumentError, UnsupportedDocument

# Texts that are kept as they are, or read by one of `_TEXT_READERS`, by the ends of their names.
_TEXTS = {
    **{".md": "markdown", ".markdown": "markdown", ".csv": "csv", ".tsv": "csv", ".ipynb": "ipynb"},
    **{".json": "json", ".jsonl": "json", ".xml": "xml", ".rst": "rst", ".tex": "latex"},
    **{".srt": "srt", ".vtt": "vtt", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"},
    **{".py": "python", ".js": "javascript", ".ts": "typescript", ".java": "java", ".c": "c"},
    **{".h": "c", ".cpp": "c++", ".hpp": "c++", ".cs": "c#", ".go": "go", ".rs": "rust"},
    **{".rb": "ruby", ".php": "php", ".sh": "shell", ".sql": "sql", ".r": "r", ".css": "css"},
}
_EXTENSIONS = {
    **_TEXTS,
    ".pdf": "pdf",
    **{".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"},
    **{".tif": "tiff", ".tiff": "tiff"},
    **{".html": "html", ".htm": "html", ".xhtml": "html"},
    **{".epub": "epub", ".msg": "msg"},
    **{".eml": "eml", ".emlx": "eml", ".mbox": "mbox", ".mht": "mhtml", ".mhtml": "mhtml"},
    **{".docx": "docx", ".docm": "docx", ".pptx": "pptx", ".xlsx": "xlsx", ".xlsm": "xlsx"},
    **dict.fromkeys((".odt", ".odp", ".ods", ".odg"), "opendocument"),
    **dict.fromkeys((".fodt", ".fodp", ".fods", ".fodg"), "opendocument"),
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
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ID3", "an MP3 recording"),
)
_PICTURES = ("a PNG image", "a JPEG image", "a TIFF image", "a WebP image")
# What an old Microsoft Office file is by one of its streams, in this order.
_OLE_STREAMS = {
    "EncryptedPackage": "an office file encrypted with a password",
    "__properties_version1.0": "msg",
    "WordDocument": "an old Word file (.doc)",
    "PowerPoint Document": "an old PowerPoint file (.ppt)",
    "Workbook": "an old Excel file (.xls)",
}
# What a ZIP archive is by one of its members; a kind of `_READERS`.
_ZIP_MEMBERS = {
    "word/document.xml": "docx",
    "xl/workbook.xml": "xlsx",
    "xl/workbook.bin": "xlsb",
    "ppt/presentation.xml": "pptx",
    "META-INF/container.xml": "epub",
    "content.xml": "opendocument",
    **{"word": "docx", "xl": "xlsx", "ppt": "pptx"},
}
_TEXT_READERS = {"csv": "tables:read_table", "ipynb": "notebook:read_notebook"}
# The readers of each kind, as "module:function", imported when such a file is read.
_READERS = {
    **dict.fromkeys(("eml", "mbox", "mhtml"), "mail:read_mail"),
    "epub": "office.epub:read_epub",
    "msg": "outlook:read_msg",
    "docx": "office.word:read_docx",
    "opendocument": "office.opendocument:read_opendocument",
    "pdf": "pdf:read_pdf",
    "picture": "pictures.reader:read_picture",
    "pptx": "office.slides:read_pptx",
    "xlsx": "office.sheets:read_xlsx",
}

_FLAT_OPENDOCUMENT = re.compile(
    rb"<(?:[\w.-]+:)?document\s[^>]*urn:oasis:names:tc:opendocument:xmlns:office:1\.0"
)
_PDF_OBJECT = re.compile(rb"\d\s+\d+\s+obj\b")  # where the header is damaged
# The headers of a message, after what Apple Mail or a mailbox puts before them.
_MAIL_HEADERS = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\d+ *\r?\n)?(?:From [^\n]*\n)?(?:[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*)+"
)
_HTML_START = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html|head|body|title|meta)\b",
    re.IGNORECASE | re.DOTALL,
)
_NOTEBOOK = re.compile(
    r'\s*\{\s*"(?:cells|metadata|nbformat)"(?=.*"cell_type")(?=.*"nbformat")', re.DOTALL
)
_TAG = re.compile(r"<(?:[a-z][a-z0-9]*[\s/>]|!--)", re.IGNORECASE)
_MARKDOWN_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$")


def read_bytes(
    data: bytes,
    name: str,
    encoding: str | None = None,
    ocr: bool = False,
    progress: Callable[[int, int], None] | None = None,
    pages: Pages = "text",
) -> Content:
    """Return what the bytes of a file say, by their content first and their name second.

    Args:
        data: the whole file.
        name: its name, for messages and, where the content leaves it open, for its kind.
        encoding: the character encoding of text, when the caller knows it.
        ocr: recognise the text of pages that are pictures.
        progress: called with pages read and pages in all, of a PDF.
        pages: what is read of pages; with ``"text"``, files that are pictures are refused.

    Raises:
        DocumentError: the file can't be read whole, or is of a kind that is not read.
    """
    if not data:
        raise DocumentError(f"{name} is empty (0 bytes); leave it out, or give the full file")
    kind = _binary_kind(data, name, pages)
    if kind is not None:
        read = _reader(_READERS[kind])
        content = read(data, name, ocr, progress, pages) if kind == "pdf" else read(data, name)
        kind = str(content.metadata.get("format", kind)) if kind == "picture" else kind
    else:
        kind, content = _read_text(data, name, encoding)
    remarks = content.remarks
    named = _EXTENSIONS.get(Path(name).suffix.lower())
    if named is not None and named != kind:
        says = f"it is named like {named} but was read as the {kind} it is"
        remarks = (Remark("misnamed", says, "warning"), *remarks)
    return replace(
        content,
        title=content.title or Path(name).stem,
        metadata={"format": kind, **content.metadata},
        remarks=remarks,
    )


def _reader(place: str) -> Callable[..., Content]:
    module, function = place.split(":")
    reader: Callable[..., Content] = getattr(
        import_module(f"selfextend_rag.documents.{module}"), function
    )
    return reader


def bytes_of(name: str) -> bytes:
    """Return what a file or a pipe holds."""
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
    return data


def _binary_kind(data: bytes, name: str, pages: Pages) -> str | None:
    """Return the kind of a file that is not text, None for text; refuse what is not read."""
    named = name.lower().endswith(".pdf") or b"%%EOF" in data[-1024:]
    if b"%PDF-" in data[:1024] or (named and _PDF_OBJECT.search(data[:1024])):
        return "pdf"
    if mail := _mail_kind(data, name):
        return mail
    if _FLAT_OPENDOCUMENT.search(data[: 1 << 14].replace(b"\0", b"")):  # of UTF-16 too
        return "opendocument"
    kind = next((kind for start, kind in _SIGNATURES if data.startswith(start)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "a WebP image"
    elif kind and kind.startswith("an old Microsoft"):
        kind = next((x for at, x in _OLE_STREAMS.items() if at.encode("utf-16-le") in data), kind)
    elif kind == "a ZIP archive":
        kind = "a damaged ZIP archive or office file"
        with suppress(zipfile.BadZipFile, ValueError, NotImplementedError):
            found = _zip_kind(zipfile.ZipFile(io.BytesIO(data)))
            if found in _READERS:
                return found
            kind = f"a ZIP archive ({found or 'read_documents reads those'})"
    if kind is None or kind in _READERS:
        return kind
    if kind in _PICTURES:
        if pages != "text":
            return "picture"
        raise UnsupportedDocument(
            f"{name} is {kind}, which has no text to be read; for a vision model read it with "
            'pages="auto", or save it as PDF and have its text recognised with ocr=True'
        )
    raise UnsupportedDocument(
        f"{name} is {kind}, which can't be read; save what it says as PDF, HTML, Markdown or plain "
        "text and read that"
    )


def _mail_kind(data: bytes, name: str) -> str | None:
    """Return the kind of a message: by its name, else by a header that all of today have."""
    headers = _MAIL_HEADERS.match(data[: 1 << 16])
    named = _EXTENSIONS.get(Path(name).suffix.lower())
    if headers and named in ("eml", "mbox", "mhtml"):
        return named
    if headers is None or not re.search(rb"(?im)^mime-version:", headers[0]):
        return None
    return "eml" if re.search(rb"(?im)^from:(?!\W*saved\b)", headers[0]) else "mhtml"


def _zip_kind(archive: zipfile.ZipFile) -> str | None:
    """Return what document a ZIP archive is by its members, None for a plain archive."""
    members = set(archive.namelist())
    if "[Content_Types].xml" in members:  # its main member may have another name
        members |= {name.partition("/")[0] for name in members}
    return next((kind for name, kind in _ZIP_MEMBERS.items() if name in members), None)


def plain_archive(data: bytes) -> zipfile.ZipFile | None:
    """Return a ZIP archive of files, None where the data is a document or a damaged archive."""
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with suppress(zipfile.BadZipFile, ValueError, NotImplementedError):
            archive = zipfile.ZipFile(io.BytesIO(data))
            return archive if _zip_kind(archive) is None else None
    return None


def _read_text(data: bytes, name: str, encoding: str | None) -> tuple[str, Content]:
    """Return what kind of text bytes are, and what they say."""
    named = _EXTENSIONS.get(Path(name).suffix.lower())
    may_declare = named == "html" or data.lstrip()[:1] == b"<"
    declared = None
    if may_declare:
        from selfextend_rag.documents.html import declared_encoding

        declared = declared_encoding(data)
    content = decode(data, name, given=encoding, declared=declared)
    text = normalize_newlines(content.text)
    if not text.strip():
        raise DocumentError(f"{name} holds only white space; leave it out, or give the full file")
    if _HTML_START.match(text) or (named == "html" and _TAG.search(text)):
        page = _reader("html:read_html")(text, name)
        metadata = {**content.metadata, **page.metadata}
        return "html", replace(page, metadata=metadata, remarks=content.remarks + page.remarks)
    kind = named if named and named in _TEXTS.values() else "text"
    if kind in ("text", "json") and _NOTEBOOK.match(text):
        kind = "ipynb"
    if kind in _TEXT_READERS:
        read = _reader(_TEXT_READERS[kind])(text, name)
        metadata = {**content.metadata, **read.metadata}
        content = replace(read, metadata=metadata, remarks=content.remarks + read.remarks)
    title = _markdown_title(content.text) if kind in ("markdown", "ipynb") else ""
    return kind, replace(content, title=title)


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
