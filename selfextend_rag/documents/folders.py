"""Folders and ZIP archives: the documents in them, and what in them was skipped."""

from __future__ import annotations

import logging
import os
import re
import stat
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from lzma import LZMAError
from typing import Literal
from zipfile import BadZipFile, ZipFile, ZipInfo

from selfextend_rag.documents.content import Pages, Severity
from selfextend_rag.documents.document import Document
from selfextend_rag.documents.files import bytes_of, plain_archive
from selfextend_rag.errors import DocumentError, UnsupportedDocument

logger = logging.getLogger(__name__)

_InFolders = Literal["hidden", "page resources", "link", "device", "unsupported", "refused"]
_InArchives = Literal["encrypted", "too large", "unsafe name", "nested"]
SkipKind = Literal[_InFolders, _InArchives]

_DEEPEST = 3  # archives in archives
# Bytes that an archive on disk may expand to: the larger of this and so many times its size. Text
# shrinks to a tenth; what is large and shrinks more was made to fill the memory.
_LARGEST, _EXPANSION = 1 << 28, 20
_DAMAGE = (BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError, ValueError)
# The folder that a browser saves with a page, as it is called in several languages.
_RESOURCES = re.compile(
    r"(.+)[._-](?:files?|dateien|fichiers|archivos|arquivos|bestanden|pliki|soubory)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or folder that was found and not read.

    Args:
        source: where it is, in the form of a document's ``source``.
        kind: why: ``hidden``, ``page resources`` (of a saved page), ``link``, ``device``,
            ``unsupported`` (a picture, a program), ``refused`` (damaged, empty, with a password);
            in an archive also ``encrypted``, ``too large``, ``unsafe name``, ``nested`` too deep.
        message: a sentence that says so, beginning with the source.
    """

    source: str
    kind: SkipKind
    message: str

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """What ``read_documents`` found: documents, what was skipped, and how many files ``glob`` was
    not meant for, which are in neither list."""

    documents: tuple[Document, ...]
    skipped: tuple[SkippedFile, ...] = ()
    unmatched: int = 0


def read_documents(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    glob: str | None = None,
    encoding: str | None = None,
    ocr: bool = False,
    strict: bool | Severity = False,
    progress: Callable[[int, int], None] | None = None,
    pages: Pages = "text",
) -> ReadFiles:
    """Return the documents in files, folders and ZIP archives, and what was skipped and why.

    A file that is named is read as ``Document.from_file`` reads it, or refused. Of a folder, all
    files are read, also those in its folders and archives, and what can't be read is listed; so is
    what is hidden, links (which may lead anywhere) and the folder that a browser saves with a page.
    Members of an archive are read in memory; their ``source`` is ``archive.zip/inner/name.pdf``.
    Names below a path are in natural order, ``2.txt`` before ``10.txt``. What is skipped is also
    logged as a warning.

    Args:
        paths: one path, or several.
        glob: read only such files of folders and archives, by their name (``*.pdf``) or their path
            below the one given (``minutes/**/*.pdf``), where ``*`` matches a ``/`` too.
        encoding: the character encoding of text, when you know better than detection does.
        ocr: recognise text on pages that are pictures; see ``Document.from_file``.
        strict: refuse files with remarks as severe as this; see ``Document.from_file``.
        progress: called with pages read and pages in all, of each PDF.
        pages: which pages and files are pictures for a vision model; see ``Document.from_file``.

    Raises:
        DocumentError: a file that was named can't be read, or nothing in a folder or archive can.
    """
    read = partial(
        Document.from_bytes, encoding=encoding, ocr=ocr, strict=strict, progress=progress,
        pages=pages,
    )  # fmt: skip
    reader = _Reader(glob, read)
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        reader.read(os.fsdecode(path))
    for skip in reader.skipped:
        logger.warning("skipped: %s", skip.message)
    return ReadFiles(tuple(reader.documents), tuple(reader.skipped), reader.unmatched)


class _Skipped(Exception):
    """Why a file is not read: a kind, and what follows its name in the message."""


class _Reader:
    def __init__(self, glob: str | None, document: Callable[[bytes, str], Document]) -> None:
        self._glob = (glob or "*").replace("**/", "*")  # fnmatch's * matches a / too
        self._document = document
        self._left = 0  # bytes that the archive may still expand to
        self.documents: list[Document] = []
        self.skipped: list[SkippedFile] = []
        self.unmatched = 0

    def read(self, path: str) -> None:
        """Read what the user named, and refuse it where nothing in it can be read."""
        documents, skipped, unmatched = len(self.documents), len(self.skipped), self.unmatched
        if os.path.isdir(path):
            self._folder(path)
        elif not self._archive(data := bytes_of(path), path, "", 0):
            self.documents.append(self._document(data, path))
        if len(self.documents) == documents:
            reasons = [skip.message for skip in self.skipped[skipped:]]
            if self.unmatched > unmatched:
                reasons.insert(0, f"{self.unmatched - unmatched} files do not match {self._glob}")
            more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            found = "; ".join(reasons[:3]) or "it has no files"
            raise DocumentError(f"{path} has nothing to read; {found}{more}")

    def _folder(self, root: str) -> None:
        def unlisted(error: OSError) -> None:
            self._skip(str(error.filename), "refused", f"can't be listed ({error.strerror})")

        names = set[str]()
        for folder, folders, files in os.walk(root, onerror=unlisted):
            links = (name for name in folders if os.path.islink(os.path.join(folder, name)))
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            names.update(name if below == "." else f"{below}/{name}" for name in (*files, *links))
        for name in self._files(root, "", names):
            path = os.path.join(root, name)
            self._add(path, name, 0, partial(_on_disk, path))

    def _archive(self, data: bytes, path: str, below: str, depth: int) -> bool:
        """Read the files in an archive, and return whether the data is one."""
        archive = plain_archive(data)
        if archive is None:
            return False
        if depth == _DEEPEST:
            raise _Skipped("nested", f"is an archive in {depth} others; unpack them")
        if depth == 0:
            self._left = max(_LARGEST, _EXPANSION * len(data))
        members = {}
        for member in archive.infolist():
            if member.filename in members:
                says = "is in its archive more than once; the last is read"
                self._skip(f"{path}/{member.filename}", "refused", says)
            if not member.filename.endswith("/"):
                members[member.filename] = member
        below = below and f"{below}/"
        for name in self._files(path, below, set(members)):
            unpacked = partial(self._unpacked, archive, members[name])
            self._add(f"{path}/{name}", below + name, depth + 1, unpacked)
        return True

    def _files(self, path: str, below: str, names: set[str]) -> Iterator[str]:
        """Yield the files of a folder or archive that are to be read; list those set aside."""
        done = set()
        for name in sorted(names, key=_natural):
            full, short = below + name, os.path.basename(name)
            if aside := _set_aside(name, names):
                if aside[0] not in done:
                    self._skip(f"{path}/{aside[0]}", *aside[1:])
                done.add(aside[0])
            elif fnmatch(full, self._glob) or fnmatch(short, self._glob) or short.endswith(".zip"):
                yield name  # of an archive, some files may match
            else:
                self.unmatched += 1

    def _unpacked(self, archive: ZipFile, member: ZipInfo) -> bytes:
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or not parts[0] or parts[0][1:2] == ":":
            raise _Skipped("unsafe name", "has a name that leads out of its archive")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _Skipped("link", "is a link; name what it leads to")
        if member.flag_bits & 1:
            raise _Skipped("encrypted", "needs a password; unpack its archive with it")
        if member.file_size > self._left:
            says = "makes its archive far larger than one of its size should be; unpack it"
            raise _Skipped("too large", says)
        self._left -= member.file_size
        try:
            return archive.read(member)
        except _DAMAGE as error:
            says = f"can't be unpacked ({error}); unpack its archive"
            raise _Skipped("refused", says) from error

    def _add(self, source: str, below: str, depth: int, read: Callable[[], bytes]) -> None:
        """Read a file of a folder or archive, or list it."""
        try:
            data = read()
            if not self._archive(data, source, below, depth):
                self.documents.append(self._document(data, source))
        except _Skipped as skip:
            self._skip(source, *skip.args)
        except DocumentError as error:
            kind: SkipKind = "unsupported" if isinstance(error, UnsupportedDocument) else "refused"
            self.skipped.append(SkippedFile(source, kind, str(error)))

    def _skip(self, source: str, kind: SkipKind, says: str) -> None:
        self.skipped.append(SkippedFile(source, kind, f"{source} {says}"))


def _on_disk(path: str) -> bytes:
    if os.path.islink(path):
        raise _Skipped("link", "is a link; name what it leads to")
    if not os.path.isfile(path):
        raise _Skipped("device", "is no regular file; name it to have it read")
    return bytes_of(path)


def _natural(path: str) -> list[list[str | int]]:
    """Return a key that orders paths by their folders, and ``2.txt`` before ``10.txt``."""
    parts = (re.split(r"(\d{1,18})", part) for part in path.split("/"))
    return [[int(x) if x.isdecimal() else x for x in part] for part in parts]


def _set_aside(path: str, files: Container[str]) -> tuple[str, SkipKind, str] | None:
    """Return what is not read by its name, a file or the first folder of its path, and why."""
    parts = path.split("/")
    for end, name in enumerate(parts, 1):
        inner = "/".join(parts[:end])
        if (name.startswith(".") and name.strip(".")) or name == "__MACOSX":
            return inner, "hidden", "is hidden; name it to have it read"
        if end < len(parts) and (stem := _RESOURCES.fullmatch(inner)):
            pages = (stem[1] + ending for ending in (".html", ".htm", ".xhtml", ".mhtml"))
            if page := next((page for page in pages if page in files), None):
                return inner, "page resources", f"holds what the saved page {page} shows"
    return None
