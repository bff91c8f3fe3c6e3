"""The header of a saved reading: a safetensors header that knows the checksums of its file.

A file is ``length (8 bytes, little endian) | header (JSON) | data``, as safetensors has it, and any
safetensors reader can open it. Two checksums in the header's metadata cover every byte: one the
data, and one the length and the header itself, with its own digits read as zeros.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import xxhash

from selfextend_rag.errors import CorruptReadingError

FORMAT = "selfextend-rag reading"
VERSION = 1
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100 << 20  # as safetensors bounds it

_UNKNOWN = "0" * 32
_DATA = "checksum_of_data"
_HEADER = "checksum_of_header"
_DIGITS = {name: re.compile(rf'"{name}":"([0-9a-f]{{32}})"'.encode()) for name in (_DATA, _HEADER)}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}

Checksum = xxhash.xxh3_128
"""Finds damage at the speed of memory; it is no signature against somebody who means harm."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its name, type, shape and where its bytes are in the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def end(self) -> int:
        """Return where its bytes end."""
        return self.begin + _BYTES[self.dtype] * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, with its checksum of the header verified.

    Args:
        entries: the tensors by name, in the order of their bytes.
        about: everything else, JSON values.
        data_checksum: of all bytes after the header.
    """

    entries: Mapping[str, Entry]
    about: Mapping[str, Any]
    data_checksum: str

    @property
    def data_bytes(self) -> int:
        """Return how many bytes follow the header."""
        return max((entry.end for entry in self.entries.values()), default=0)


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[Entry]:
    """Return entries for (name, type, shape), one after the other without gaps."""
    entries: list[Entry] = []
    for name, dtype, shape in tensors:
        entries.append(Entry(name, dtype, shape, entries[-1].end if entries else 0))
    return entries


def unsealed(entries: Sequence[Entry], about: Mapping[str, Any]) -> bytes:
    """Return length and header as bytes, zeros in place of both checksums."""
    content: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            _HEADER: _UNKNOWN,
            _DATA: _UNKNOWN,
            "about": json.dumps(about, ensure_ascii=False),
        }
    }
    for entry in entries:
        content[entry.name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text


def sealed(header: bytes, data_checksum: str) -> bytes:
    """Return what ``unsealed`` gave with both checksums in their places."""
    header = _with_digits(header, _DATA, data_checksum)
    return _with_digits(header, _HEADER, Checksum(header).hexdigest())


def header_length(first: bytes, file_bytes: int) -> int:
    """Return how long the header is, from the first bytes of a file.

    Raises:
        CorruptReadingError: no file of ours begins like that.
    """
    if len(first) < LENGTH_BYTES:
        raise CorruptReadingError(f"it has {file_bytes} bytes, too few for any header")
    length = struct.unpack("<Q", first)[0]
    if length > min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise CorruptReadingError(f"its header would be {length} bytes, in a file of {file_bytes}")
    return length


def parse(header: bytes, file_bytes: int) -> Header:
    """Return the header in length and JSON, every byte of it verified.

    Raises:
        CorruptReadingError: it is damaged, of another format or version, or the file is longer or
            shorter than it says.
    """
    content = _json(header[LENGTH_BYTES:])
    metadata = content.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CorruptReadingError("it is not a reading that was saved by selfextend-rag")
    if metadata.get("version") != str(VERSION):
        raise CorruptReadingError(
            f"it has format version {metadata.get('version')!r}, and this release reads {VERSION}"
        )
    if _digits(header, _HEADER) != Checksum(_with_digits(header, _HEADER, _UNKNOWN)).hexdigest():
        raise CorruptReadingError("its header has another checksum than when it was written")
    entries = {name: _entry(name, values) for name, values in content.items()}
    found = Header(entries, _json(metadata["about"].encode()), _digits(header, _DATA))
    if len(header) + found.data_bytes != file_bytes:
        raise CorruptReadingError(
            f"it has {file_bytes} bytes, and had {len(header) + found.data_bytes} when written"
        )
    return found


def _json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptReadingError(f"its header is no JSON ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise CorruptReadingError("its header is no JSON object")
    return content


def _entry(name: str, values: Any) -> Entry:
    entry = Entry(name, values["dtype"], tuple(values["shape"]), values["data_offsets"][0])
    if entry.end != values["data_offsets"][1]:
        raise CorruptReadingError(f"the tensor {name} is not as long as its shape says")
    return entry


def _digits(header: bytes, name: str) -> str:
    found = _DIGITS[name].search(header)
    if found is None:
        raise CorruptReadingError(f"its header has no {name}")
    return found[1].decode()


def _with_digits(header: bytes, name: str, digits: str) -> bytes:
    found = _DIGITS[name].search(header)
    if found is None:
        raise CorruptReadingError(f"its header has no {name}")
    return header[: found.start(1)] + digits.encode() + header[found.end(1) :]
