"""Files that clients sent: each is read to a document when it comes, and kept by its content."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote_to_bytes

from selfextend_rag.documents import Document
from selfextend_rag.serve.errors import ApiError, bad_request

_AT_ONCE = 2  # files that are read at the same time; each may take some hundred MB


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it was read.

    Args:
        id: the same for the same name and content.
        name: as the client named it, without folders.
        nbytes: as it was sent.
        document: its text, and what of the file the text does not say.
        created: seconds since 1970.
    """

    id: str
    name: str
    nbytes: int
    document: Document
    created: int = field(default_factory=lambda: int(time.time()))

    def to_dict(self) -> dict[str, object]:
        """Return it as OpenAI's file object, with what this server knows besides."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.nbytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": "user_data",
            "status": "processed",
            "title": self.document.title,
            "characters": len(self.document.text),
            "format": self.document.metadata.get("format"),
            "remarks": [remark.to_dict() for remark in self.document.remarks],
        }


class FileStore:
    """The files of a server, in memory.

    Args:
        most: how many to keep.
        most_bytes: what they may take together.
        pages: what becomes pictures, see ``Document.from_file``; for a vision model.
    """

    def __init__(self, most: int, most_bytes: int, pages: Literal["text", "auto"] = "text") -> None:
        self.most = most
        self._pages = pages
        self.most_bytes = most_bytes
        self._files: dict[str, StoredFile] = {}
        self._ids: dict[bytes, str] = {}  # by the digests of name and bytes
        self._coming: list[int] = []  # bytes of files that are being read
        self._lock = threading.Lock()
        self._reading = asyncio.Semaphore(_AT_ONCE)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all files, as they were sent."""
        with self._lock:
            return sum(file.nbytes for file in self._files.values())

    def all(self) -> list[StoredFile]:
        """Return the files, in the order in which they came."""
        with self._lock:
            return list(self._files.values())

    async def add(self, data: bytes, name: str) -> StoredFile:
        """Read a file and keep it; one that is there already is that one.

        Raises:
            NoSpace: there is no space for it.
            DocumentError: it can't be read whole.
        """
        digest = await asyncio.to_thread(_digest, data, plain_name(name))
        if (known := self._files.get(self._ids.get(digest, ""))) is not None:
            return known
        with self._reserved(len(data)):
            document = await self._read(data, name)
            file = self._put(document, name, len(data))
        self._ids[digest] = file.id
        return file

    async def document_of(self, data: bytes, name: str) -> Document:
        """Return the document of a file that comes with a message, kept if there is space.

        Raises:
            DocumentError: it can't be read whole.
        """
        try:
            return (await self.add(data, name)).document
        except NoSpace:
            return await self._read(data, name)

    async def _read(self, data: bytes, name: str) -> Document:
        async with self._reading:
            return await asyncio.to_thread(
                Document.from_bytes, data, plain_name(name), pages=self._pages
            )

    def keep(self, document: Document, name: str, nbytes: int) -> StoredFile:
        """Keep a document under the name of its file; one that is there already is that one.

        Raises:
            NoSpace: there is no space for it.
        """
        with self._lock:
            known = self._files.get(_id_of(document, plain_name(name)))
        if known is not None:
            return known
        with self._reserved(nbytes):
            return self._put(document, name, nbytes)

    def _put(self, document: Document, name: str, nbytes: int) -> StoredFile:
        file_id = _id_of(document, plain_name(name))
        file = StoredFile(file_id, plain_name(name), nbytes, document)
        with self._lock:
            return self._files.setdefault(file_id, file)

    def get(self, file_id: str) -> StoredFile:
        """Return a file.

        Raises:
            ApiError: there is none of this id.
        """
        with self._lock:
            file = self._files.get(file_id)
        if file is None:
            raise ApiError(
                404,
                f"there is no file {file_id!r}; files are kept while the server runs",
                code="file_not_found",
                param="file_id",
            )
        return file

    def remove(self, file_id: str) -> None:
        """Forget a file.

        Raises:
            ApiError: there is none of this id.
        """
        self.get(file_id)
        with self._lock:
            self._files.pop(file_id, None)
            self._ids = {digest: kept for digest, kept in self._ids.items() if kept != file_id}

    @contextmanager
    def _reserved(self, nbytes: int) -> Iterator[None]:
        """Reserve space for a file that is being read, so that many at once stay in their bounds.

        Raises:
            NoSpace: there is too little.
        """
        with self._lock:
            there = [*(file.nbytes for file in self._files.values()), *self._coming]
            if len(there) >= self.most or sum(there) + nbytes > self.most_bytes:
                raise NoSpace(
                    f"the server keeps {self.most} files of {self.most_bytes} bytes together, and "
                    f"has {len(there)} of {sum(there)}; delete some"
                )
            self._coming.append(nbytes)
        try:
            yield
        finally:
            with self._lock:
                self._coming.remove(nbytes)


class NoSpace(ApiError):
    """The server keeps as many files as it may."""

    def __init__(self, message: str) -> None:
        super().__init__(413, message, code="too_many_files", param="file")


def _digest(data: bytes, name: str) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\0")
    digest.update(data)
    return digest.digest()


def _id_of(document: Document, name: str) -> str:
    seen = (picture.digest for picture in document.pictures)
    content = "\0".join((name, document.title, document.text, *seen))
    return f"file-{hashlib.sha256(content.encode()).hexdigest()[:24]}"


def plain_name(name: str) -> str:
    """Return the name of a file without folders and control characters; never empty."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable()).strip()[:200] or "file"


def data_of_url(url: str) -> bytes:
    """Return the bytes in a ``data:`` URL, or in base64 alone.

    Raises:
        ApiError: it is neither.
    """
    head, comma, body = url.partition(",")
    if url.startswith("data:") and comma and not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body if comma else url, validate=True)
    except (binascii.Error, ValueError):
        bad_request("file_data must be base64, or a data: URL", "messages")
