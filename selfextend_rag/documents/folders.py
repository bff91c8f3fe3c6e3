"""Folders and ZIP archives: the documents in them, and what in them was skipped."""

from __future__ import annotations

import io
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

from selfextend_rag.documents.content import Severity
from selfextend_rag.documents.document import Document
from selfextend_rag.documents.files import plain_archive
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
    strict: bool | Severity = False,
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
        strict: refuse files with remarks as severe as this; see ``Document.from_file``.

    Raises:
        DocumentError: a file that was named can't be read, or nothing in a folder or archive can.
    """
    reader = _Reader(glob, encoding, strict)
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        reader.read(os.fsdecode(path))
    for skip in reader.skipped:
        logger.warning("skipped: %s", skip.message)
    return ReadFiles(tuple(reader.documents), tuple(reader.skipped), reader.unmatched)


class _Reader:
    def __init__(self, glob: str | None, encoding: str | None, strict: bool | Severity) -> None:
        self._glob = (glob or "*").replace("**/", "*")  # fnmatch's * matches a / too
        self._from_file = partial(Document.from_file, encoding=encoding, strict=strict)
        self._from_bytes = partial(Document.from_bytes, encoding=encoding, strict=strict)
        self._left = 0  # bytes that the archive may still expand to
        self.documents: list[Document] = []
        self.skipped: list[SkippedFile] = []
        self.unmatched = 0

    def read(self, path: str) -> None:
        """Read what the user named, and refuse it where nothing in it can be read."""
        documents, skipped, unmatched = len(self.documents), len(self.skipped), self.unmatched
        if os.path.isdir(path):
            self._folder(path)
        elif not self._archive_on_disk(path, ""):
            self.documents.append(self._from_file(path))
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
            if os.path.islink(path):
                self._skip(path, "link", "is a link; name what it leads to")
            elif not os.path.isfile(path):
                self._skip(path, "device", "is no regular file; name it to have it read")
            elif not self._archive_on_disk(path, name):
                self._add(path, self._from_file, path)

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

    def _archive_on_disk(self, path: str, below: str) -> bool:
        """Read what is in an archive, and return whether the file is one."""
        if not os.path.isfile(path):
            return False
        try:
            with open(path, "rb") as file:
                archive = plain_archive(file)
                if archive is not None:
                    self._left = max(_LARGEST, _EXPANSION * os.path.getsize(path))
                    self._archive(archive, path, below, 1)
        except OSError:  # read as a file, it is refused with the reason
            return False
        return archive is not None

    def _archive(self, archive: ZipFile, path: str, below: str, depth: int) -> None:
        members = {}
        for member in archive.infolist():
            if member.filename in members:
                says = "is in its archive more than once; the last is read"
                self._skip(f"{path}/{member.filename}", "refused", says)
            if not member.filename.endswith("/"):
                members[member.filename] = member
        below = below and f"{below}/"
        for name in self._files(path, below, set(members)):
            data = self._unpacked(archive, members[name], source := f"{path}/{name}")
            if data is None:
                continue
            nested = plain_archive(io.BytesIO(data))
            if nested is None:
                self._add(source, self._from_bytes, data, source)
            elif depth == _DEEPEST:
                self._skip(source, "nested", f"is an archive in {depth} others; unpack them")
            else:
                self._archive(nested, source, below + name, depth + 1)

    def _unpacked(self, archive: ZipFile, member: ZipInfo, source: str) -> bytes | None:
        """Return what a member holds, or None once it is said why not."""
        parts = re.split(r"[/\\]", member.filename)
        if ".." in parts or not parts[0] or parts[0][1:2] == ":":
            self._skip(source, "unsafe name", "has a name that leads out of its archive")
        elif stat.S_ISLNK(member.external_attr >> 16):
            self._skip(source, "link", "is a link; name what it leads to")
        elif member.flag_bits & 1:
            self._skip(source, "encrypted", "needs a password; unpack its archive with it")
        elif member.file_size > self._left:
            says = "makes its archive far larger than one of its size should be; unpack it"
            self._skip(source, "too large", says)
        else:
            self._left -= member.file_size
            try:
                return archive.read(member)
            except _DAMAGE as error:
                self._skip(source, "refused", f"can't be unpacked ({error}); unpack its archive")
        return None

    def _add(self, source: str, read: Callable[..., Document], *given: bytes | str) -> None:
        try:
            self.documents.append(read(*given))
        except DocumentError as error:
            kind: SkipKind = "unsupported" if isinstance(error, UnsupportedDocument) else "refused"
            self.skipped.append(SkippedFile(source, kind, str(error)))

    def _skip(self, source: str, kind: SkipKind, says: str) -> None:
        self.skipped.append(SkippedFile(source, kind, f"{source} {says}"))


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
