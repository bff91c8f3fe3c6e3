"""Keys and values saved to a file, and loaded with every byte verified.

A file is safetensors, which executes nothing: ``length (8 bytes) | header (JSON) | data``. Two
checksums in the header's metadata cover all of it: one of the data, and one of the header, which is
written in one way only and so is verified by writing it again. Tensors are written from where they
are and read to where they belong; a cache is never in memory twice. (`safetensors.safe_open` opens
a file a second time for its data, when another process may have replaced it, and takes longer.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path

import torch
import xxhash
from torch import Tensor
from transformers import cache_utils

from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.files import replacing
from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.maps import map_from_dict, map_to_dict
from selfextend_rag.positions import PositionMap

FORMAT = "selfextend-rag reading"
VERSION = 2

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20  # as safetensors bounds it
_UNKNOWN = "0" * 32  # in place of the data's checksum, until the data is written
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.int8: "I8",
}
_TORCH = dict(zip(_DTYPES.values(), _DTYPES, strict=True))
_KINDS = (
    GrowingLayer,
    QuantisedLayer,
    SlidingLayer,
    cache_utils.LinearAttentionLayer,
    cache_utils.LinearAttentionAndFullAttentionLayer,
    cache_utils.LinearAttentionAndSlidingWindowAttentionLayer,
    getattr(cache_utils, "DummyLayer", SlidingLayer),  # later than transformers 5.15
)

Entries = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of stored tensors by their names, in the order of their bytes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Views of all that a cache holds now; appending to the cache does not change them."""

    kinds: Sequence[str]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Saved:
    """Tokens with their keys and values, the settings they were read under, and what came along."""

    tokens: tuple[int, ...]
    settings: PositionMap | None
    cache: SelfExtendCache
    attachment: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, verified but for the data."""

    tokens: int  # that it holds with keys and values
    capacity: int  # tokens to allocate when it is loaded
    settings: PositionMap | None
    kinds: list[str]  # of the cache's layers
    fingerprint: Mapping[str, str]
    entries: Entries
    data_checksum: str  # of all bytes after the header


def snapshot(cache: SelfExtendCache) -> Snapshot:
    """Return what a cache holds; grouped keys are left out, because they can be made again.

    Raises:
        CacheMismatchError: a layer or tensor of a kind that can't be saved.
    """
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        if type(layer) not in _KINDS:
            raise CacheMismatchError(
                f"layer {index} keeps its keys in a {type(layer).__name__}, which can't be saved; "
                f"these can: {', '.join(kind.__name__ for kind in dict.fromkeys(_KINDS))}"
            )
        tensors |= {f"layers.{index}.{name}": x for name, x in _tensors_of(layer)}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CacheMismatchError(f"{name} is of type {tensor.dtype}, which can't be saved")
    return Snapshot([type(layer).__name__ for layer in cache.layers], tensors)


def _tensors_of(layer: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(layer, FullLayer):
        yield from layer.tensors().items()
        return
    for name in ("keys", "values"):
        tensor = getattr(layer, name, None)
        if tensor is not None and tensor.numel():
            yield name, tensor
    for name in ("conv_states", "recurrent_states"):
        for index, tensor in getattr(layer, name, {}).items():
            if tensor is not None:
                yield f"{name}.{index}", tensor


def save(
    path: Path,
    snapshot: Snapshot,
    tokens: Sequence[int],
    settings: PositionMap | None,
    *,
    fingerprint: Mapping[str, str],
    capacity: int = 0,
    attachment: bytes = b"",
) -> None:
    """Write a cache to a file, which is there whole or not at all; what is there is replaced.

    Args:
        path: the file.
        snapshot: keys and values of all ``tokens``.
        tokens: the token ids.
        settings: those that they were read under; None for plain attention.
        fingerprint: what the cache belongs to, in named parts.
        capacity: tokens to allocate when it is loaded.
        attachment: bytes to keep with it.

    Raises:
        ReadingFileError: the file can't be written.
    """
    about = {
        "fingerprint": dict(fingerprint),
        "settings": settings and map_to_dict(settings),
        "kinds": list(snapshot.kinds),
        "tokens": len(tokens),
        "capacity": max(capacity, len(tokens)),
    }
    content = {"tokens": torch.tensor(tokens, dtype=torch.int64), **snapshot.tensors}
    if attachment:
        content["attachment"] = torch.frombuffer(bytearray(attachment), dtype=torch.uint8)
    entries, described = _entries(content), json.dumps(about, ensure_ascii=False)
    try:
        with replacing(path) as file:
            file.write(_header_bytes(entries, described, _UNKNOWN))
            checksum = xxhash.xxh3_128()
            for tensor in content.values():
                for part in _contiguous(tensor):
                    data = _bytes_of(part.cpu())
                    checksum.update(data)
                    file.write(data)
            file.seek(0)
            file.write(_header_bytes(entries, described, checksum.hexdigest()))
    except OSError as error:
        raise ReadingFileError(
            f"can't write {path}: {error.strerror or error}; name a file in a folder that exists, "
            "is writable and has space left"
        ) from error


def load(
    path: Path,
    blank: Callable[[PositionMap | None], SelfExtendCache],
    *,
    fingerprint: Mapping[str, str],
) -> Saved:
    """Return what was saved, every byte of it verified.

    Args:
        path: the file.
        blank: given the settings, returns a cache that the model has filled with any tokens; its
            shapes, types and devices are what the file is checked against. It is filled again.
        fingerprint: what the cache has to belong to.

    Raises:
        CacheMismatchError: it belongs to something else; the message says what differs.
        CorruptReadingError: it is damaged or no saved reading.
        ReadingFileError: the file can't be read.
    """
    with _reading(path, fingerprint) as (file, header):
        cache = blank(header.settings)
        places = _places(cache, header)
        others = {
            name: torch.empty(shape, dtype=_TORCH[dtype])
            for name, (dtype, shape) in header.entries.items()
            if name not in places
        }
        checksum = xxhash.xxh3_128()
        for name in header.entries:
            for part in _contiguous(places[name] if name in places else others[name]):
                checksum.update(_read_into(file, part))
        if checksum.hexdigest() != header.data_checksum:
            raise CorruptReadingError("its data has another checksum than when it was written")
    attachment = bytes(_bytes_of(others["attachment"])) if "attachment" in others else b""
    return Saved(tuple(others["tokens"].tolist()), header.settings, cache, attachment)


def header_of(path: Path, fingerprint: Mapping[str, str]) -> Header:
    """Return what a file says of itself; errors as of `load`."""
    with _reading(path, fingerprint) as (_, header):
        return header


def tokens_in(
    path: Path, fingerprint: Mapping[str, str]
) -> tuple[tuple[int, ...], PositionMap | None]:
    """Return the tokens of a file, not verified, and their settings; errors as of `load`."""
    with _reading(path, fingerprint) as (file, header):
        tokens = torch.empty(header.tokens, dtype=torch.int64)
        _read_into(file, tokens)  # they come first
        return tuple(tokens.tolist()), header.settings


def attachment_in(path: Path, fingerprint: Mapping[str, str]) -> tuple[bytes, Header]:
    """Return the attachment of a file, not verified, and its header; errors as of `load`."""
    with _reading(path, fingerprint) as (file, header):
        for name, (dtype, shape) in header.entries.items():
            size = _TORCH[dtype].itemsize * prod(shape)
            if name == "attachment":
                return file.read(size), header
            file.seek(size, os.SEEK_CUR)
    return b"", header


@contextmanager
def _reading(path: Path, ours: Mapping[str, str]) -> Iterator[tuple[BufferedReader, Header]]:
    """Yield a file of this fingerprint, at the beginning of its data; errors name it."""
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            theirs = header.fingerprint
            if differences := [
                f"{part} {theirs.get(part, 'unknown')} there, {ours.get(part, 'unknown')} here"
                for part in sorted({*theirs, *ours})
                if theirs.get(part) != ours.get(part)
            ]:
                raise CacheMismatchError(
                    f"it was read by another model or in another way: {'; '.join(differences)}; "
                    "use what it was read with, or read the documents again"
                )
            yield file, header
    except CorruptReadingError as error:
        raise CorruptReadingError(
            f"{path} is damaged or no saved reading: {error}; read the documents again"
        ) from error
    except CacheMismatchError as error:
        raise CacheMismatchError(f"{path} can't be used here: {error}") from error
    except OSError as error:
        raise ReadingFileError(f"can't read {path}: {error.strerror or error}") from error


def _entries(tensors: Mapping[str, Tensor]) -> Entries:
    return {name: (_DTYPES[x.dtype], tuple(x.shape)) for name, x in tensors.items()}


def _header_bytes(entries: Entries, about: str, data_checksum: str) -> bytes:
    """Return the length and header of a file, with its own checksum; the same size for any data."""
    described = json.dumps([FORMAT, VERSION, about, data_checksum, list(entries.items())])
    content: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "about": about,
            "data_checksum": data_checksum,
            "header_checksum": xxhash.xxh3_128_hexdigest(described.encode()),
        }
    }
    begin = 0
    for name, (dtype, shape) in entries.items():
        end = begin + _TORCH[dtype].itemsize * prod(shape)
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text


def _read_header(file: BufferedReader) -> Header:
    """Return the header of a file, every byte of it verified, as is the length of the file."""
    size, first = os.fstat(file.fileno()).st_size, file.read(_LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise CorruptReadingError(f"its header would be {length} bytes, in a file of {size}")
    try:
        text = file.read(length)
        content = json.loads(text)
        metadata = content.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise CorruptReadingError("it is not a reading that was saved by selfextend-rag")
        if metadata["version"] != str(VERSION):
            raise CorruptReadingError(
                f"it has format version {metadata['version']!r}, and this release reads {VERSION}"
            )
        entries = {name: (x["dtype"], tuple(x["shape"])) for name, x in content.items()}
        data_checksum = metadata["data_checksum"]
        if _header_bytes(entries, metadata["about"], data_checksum) != first + text:
            raise CorruptReadingError("its header has another checksum than when it was written")
        # what follows was written by `save`, byte for byte
        about = json.loads(metadata["about"])
        settings = about.pop("settings")
        settings = None if settings is None else map_from_dict(settings)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CorruptReadingError):
            raise
        raise CorruptReadingError(f"its header makes no sense ({error!r})") from error
    data_bytes = max(x["data_offsets"][1] for x in content.values())
    if size != (expected := _LENGTH_BYTES + length + data_bytes):
        raise CorruptReadingError(f"it has {size} bytes, and had {expected} when written")
    return Header(**about, settings=settings, entries=entries, data_checksum=data_checksum)


def _places(cache: SelfExtendCache, header: Header) -> dict[str, Tensor]:
    """Allocate the tensors of a file in a cache and return them, to be written to, by name."""
    if snapshot(cache).kinds != header.kinds:
        raise CacheMismatchError("its layers are of other kinds than this model's")
    cache.set_capacity(header.capacity)
    stored = {name: x for name, x in header.entries.items() if name.startswith("layers.")}
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, FullLayer):
            cache.layers[index] = layer.emptied(header.tokens, header.settings, cache.capacity)
            continue
        for name, tensor in _tensors_of(layer):  # states are of one size, windows are not
            _, shape = stored.get(f"layers.{index}.{name}", ("", tensor.shape))
            if name in ("keys", "values"):
                like = (*tensor.shape[:2], shape[2], *tensor.shape[3:])
                setattr(layer, name, tensor.new_empty(like))
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = header.tokens
    places = dict(snapshot(cache).tensors)
    made = _entries(places)
    for name in sorted({*stored, *made}):
        if stored.get(name) != made.get(name):
            there, here = (
                "absent" if name not in x else f"{x[name][0]} {list(x[name][1])}"
                for x in (stored, made)
            )
            raise CacheMismatchError(f"{name} is {there} in the file, and this model makes {here}")
    return places


def _contiguous(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in contiguous slices, in the order of its elements, without a copy."""
    if tensor.is_contiguous():
        yield tensor
    else:
        for part in tensor.unbind():
            yield from _contiguous(part)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in main memory, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _read_into(file: BufferedReader, part: Tensor) -> memoryview:
    """Fill a contiguous tensor, on any device, from a file and return its bytes."""
    here = part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
    view, done = _bytes_of(here), 0
    while done < len(view):  # one call reads at most 2 GiB
        got = file.readinto(view[done:])
        if not got:
            raise CorruptReadingError("it ends in the middle")
        done += got
    if here is not part:
        with torch.inference_mode():
            part.copy_(here)
    return view
