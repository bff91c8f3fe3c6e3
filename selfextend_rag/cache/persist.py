"""Saved keys and values, checked byte by byte when they come back.

Nothing in a file is executed: it is safetensors, without pickle. ``files.py`` puts it in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.contents import DTYPES, Snapshot, kinds, refill, slabs
from selfextend_rag.cache.files import replacing
from selfextend_rag.cache.header import (
    LENGTH_BYTES,
    Checksum,
    Entry,
    Header,
    header_length,
    lay_out,
    parse,
    sealed,
    unsealed,
)
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.positions import SelfExtend

_TORCH = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Saved:
    """Tokens with their keys and values, as they were saved.

    Args:
        tokens: the token ids.
        extension: the settings they were read under; None for plain attention.
        cache: their keys and values.
        attachment: whatever else was saved with them.
    """

    tokens: tuple[int, ...]
    extension: SelfExtend | None
    cache: SelfExtendCache
    attachment: bytes


@dataclass(frozen=True, slots=True)
class SavedSize:
    """How much a file holds.

    Args:
        tokens: with keys and values.
        capacity: tokens that there is to be room for.
        extension: the settings they were read under; None for plain attention.
    """

    tokens: int
    capacity: int
    extension: SelfExtend | None


def save(
    path: Path,
    snapshot: Snapshot,
    tokens: Sequence[int],
    extension: SelfExtend | None,
    *,
    fingerprint: Mapping[str, str],
    capacity: int = 0,
    attachment: bytes = b"",
) -> None:
    """Write a cache to a file, which is there whole or not at all.

    Args:
        path: the file; what is there is replaced.
        snapshot: keys and values of ``tokens``, all of them.
        tokens: the token ids.
        extension: the settings they were read under; None for plain attention.
        fingerprint: what the cache belongs to, in named parts.
        capacity: tokens to make room for when it is loaded.
        attachment: bytes to keep with it.

    Raises:
        ReadingFileError: the file can't be written.
    """
    about = {
        "fingerprint": dict(fingerprint),
        "extension": extension and [extension.group_size, extension.neighbor_window],
        "kinds": list(snapshot.kinds),
        "tokens": len(tokens),
        "capacity": max(capacity, len(tokens)),
    }
    content = {
        "tokens": torch.tensor(tokens, dtype=torch.int64),
        "attachment": torch.frombuffer(bytearray(attachment or b"\0"), dtype=torch.uint8),
        **snapshot.tensors,
    }
    if not attachment:
        del content["attachment"]
    entries = lay_out([(n, DTYPES[x.dtype], tuple(x.shape)) for n, x in content.items()])
    header = unsealed(entries, about)
    try:
        with replacing(path) as file:
            file.write(header)
            checksum = Checksum()
            for tensor in content.values():
                for slab in slabs(tensor):
                    data = _bytes_of(slab.cpu())
                    checksum.update(data)
                    file.write(data)
            file.seek(0)
            file.write(sealed(header, checksum.hexdigest()))
    except OSError as error:
        raise ReadingFileError(
            f"can't write {path}: {error.strerror or error}; name a file in a folder that exists, "
            "is writable and has room"
        ) from error


def load(
    path: Path,
    blank: Callable[[SelfExtend | None], SelfExtendCache],
    *,
    fingerprint: Mapping[str, str],
) -> Saved:
    """Return what was saved, every byte of it verified.

    Args:
        path: the file.
        blank: given the settings, returns a cache that the model has filled with any tokens; it is
            filled anew.
        fingerprint: what the cache has to belong to.

    Raises:
        CacheMismatchError: it belongs to something else; the message says what differs.
        CorruptReadingError: it is damaged or no saved reading.
        ReadingFileError: the file can't be read.
    """
    with _reading(path) as file:
        header = _header(file)
        _check(header, fingerprint)
        try:
            extension = _extension(header)
            cache = blank(extension)
            cache.set_capacity(header.about["capacity"])
            if kinds(cache) != header.about["kinds"]:
                raise CacheMismatchError("its layers are of other kinds than this model's")
            stored = {name: (e.dtype, e.shape) for name, e in header.entries.items()}
            places = refill(cache, stored, header.about["tokens"], extension)
            others = {
                name: torch.empty(entry.shape, dtype=_TORCH[entry.dtype])
                for name, entry in header.entries.items()
                if name not in places
            }
        except (KeyError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, CacheMismatchError | CorruptReadingError):
                raise
            raise CorruptReadingError(f"its header makes no sense ({error!r})") from error
        places |= others
        checksum = Checksum()
        for entry in sorted(header.entries.values(), key=lambda entry: entry.begin):
            for slab in slabs(places[entry.name]):
                checksum.update(_read_into(file, slab))
        if checksum.hexdigest() != header.data_checksum:
            raise CorruptReadingError("its data has another checksum than when it was written")
    attachment = others.get("attachment", torch.empty(0, dtype=torch.uint8))
    tokens = tuple(others["tokens"].tolist())
    return Saved(tokens, extension, cache, bytes(_bytes_of(attachment)))


def tokens_in(path: Path, fingerprint: Mapping[str, str]) -> tuple[tuple[int, ...], Any]:
    """Return the tokens of a file and their settings, without their keys; not verified.

    Raises:
        CacheMismatchError, CorruptReadingError, ReadingFileError: as ``load``.
    """
    with _reading(path) as file:
        header = _header(file)
        _check(header, fingerprint)
        entry: Entry | None = header.entries.get("tokens")
        if entry is None or entry.dtype != "I64":
            raise CorruptReadingError("it has no tokens")
        file.seek(entry.begin, os.SEEK_CUR)
        tokens = torch.empty(entry.shape, dtype=torch.int64)
        _read_into(file, tokens)
        return tuple(tokens.tolist()), _extension(header)


def size_in(path: Path, fingerprint: Mapping[str, str]) -> SavedSize:
    """Return how much a file holds, from its header alone.

    Raises:
        CacheMismatchError, CorruptReadingError, ReadingFileError: as ``load``.
    """
    with _reading(path) as file:
        header = _header(file)
        _check(header, fingerprint)
        try:
            tokens, capacity = int(header.about["tokens"]), int(header.about["capacity"])
            return SavedSize(tokens, max(tokens, capacity), _extension(header))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptReadingError(f"its header makes no sense ({error!r})") from error


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to read; what goes wrong names it."""
    try:
        with open(path, "rb") as file:
            yield file
    except CorruptReadingError as error:
        raise CorruptReadingError(
            f"{path} is damaged or no saved reading: {error}; read the documents again"
        ) from error
    except CacheMismatchError as error:
        raise CacheMismatchError(f"{path} can't be used here: {error}") from error
    except OSError as error:
        raise ReadingFileError(f"can't read {path}: {error.strerror or error}") from error


def _header(file: BinaryIO) -> Header:
    size = os.fstat(file.fileno()).st_size
    first = file.read(LENGTH_BYTES)
    header = first + file.read(header_length(first, size))
    try:
        return parse(header, size)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        if isinstance(error, CorruptReadingError):
            raise
        raise CorruptReadingError(f"its header makes no sense ({error!r})") from error


def _check(header: Header, fingerprint: Mapping[str, str]) -> None:
    theirs = header.about["fingerprint"]
    differences = [
        f"{part} {theirs.get(part, 'unknown')} there, {fingerprint.get(part, 'unknown')} here"
        for part in sorted({*theirs, *fingerprint})
        if theirs.get(part) != fingerprint.get(part)
    ]
    if differences:
        raise CacheMismatchError(
            f"it was read by another model or in another way: {'; '.join(differences)}; "
            "use what it was read with, or read the documents again"
        )


def _extension(header: Header) -> SelfExtend | None:
    settings = header.about["extension"]
    return None if settings is None else SelfExtend(*settings)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in memory, without a copy."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _read_into(file: BinaryIO, slab: Tensor) -> memoryview:
    """Fill a contiguous tensor, on any device, from a file and return its bytes."""
    here = slab if slab.device.type == "cpu" else torch.empty_like(slab, device="cpu")
    view = _bytes_of(here)
    done = 0
    while done < len(view):  # one call reads at most 2 GiB
        got = file.readinto(view[done:])  # type: ignore[attr-defined]  # BinaryIO lacks it
        if not got:
            raise CorruptReadingError("it ends in the middle")
        done += got
    if here is not slab:
        with torch.inference_mode():
            slab.copy_(here)
    return view
