"""Keys and values saved to a file, and loaded with every byte verified.

A file is safetensors, which executes nothing: ``length (8 bytes) | header (JSON) | data``. Any
safetensors reader can open it. Two checksums in the header's metadata cover all of it: one of the
data, and one of the header, which is written in one way only. Tensors are written from where they
are and read to where they belong, so that a cache is never in memory twice. (The header is read
here because `safetensors.safe_open` opens a file a second time for its data, and another process
may have replaced it in between.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
import xxhash
from torch import Tensor
from transformers import cache_utils

from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.files import replacing
from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.positions import SelfExtend

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
_TORCH = {name: dtype for dtype, name in _DTYPES.items()}
_STOCK_KINDS = (
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "DummyLayer",  # later than transformers 5.15
)
_KINDS = (
    GrowingLayer,
    QuantisedLayer,
    SlidingLayer,
    *(getattr(cache_utils, kind) for kind in _STOCK_KINDS if hasattr(cache_utils, kind)),
)
_STATES = ("conv_states", "recurrent_states")

Entries = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of stored tensors by their names, in the order of their bytes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Views of all that a cache holds now; appending to the cache does not change them."""

    kinds: Sequence[str]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Saved:
    """Tokens with their keys and values, as they were saved.

    Args:
        tokens: the token ids.
        settings: those that they were read under; None for plain attention.
        cache: their keys and values.
        attachment: whatever else was saved with them.
    """

    tokens: tuple[int, ...]
    settings: SelfExtend | None
    cache: SelfExtendCache
    attachment: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself, verified but for the data.

    Args:
        tokens: how many it holds with keys and values.
        capacity: tokens to allocate when it is loaded.
        settings: those that they were read under; None for plain attention.
        kinds: the kinds of the cache's layers.
        fingerprint: what the cache belongs to.
        entries: the stored tensors.
        data_checksum: of all bytes after the header.
    """

    tokens: int
    capacity: int
    settings: SelfExtend | None
    kinds: list[str]
    fingerprint: Mapping[str, str]
    entries: Entries
    data_checksum: str


def snapshot(cache: SelfExtendCache) -> Snapshot:
    """Return what a cache holds; grouped keys are left out, because they can be made again.

    Raises:
        CacheMismatchError: a layer or tensor of a kind that can't be saved.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) not in _KINDS:
            raise CacheMismatchError(
                f"layer {index} keeps its keys in a {type(layer).__name__}, which can't be saved; "
                f"these can: {', '.join(kind.__name__ for kind in _KINDS)}"
            )
    tensors = {
        f"layers.{index}.{name}": tensor
        for index, layer in enumerate(cache.layers)
        for name, tensor in _tensors_of(layer)
    }
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
    for name in _STATES:
        for index, tensor in getattr(layer, name, {}).items():
            if tensor is not None:
                yield f"{name}.{index}", tensor


def save(
    path: Path,
    snapshot: Snapshot,
    tokens: Sequence[int],
    settings: SelfExtend | None,
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
        settings: those that they were read under; None for plain attention.
        fingerprint: what the cache belongs to, in named parts.
        capacity: tokens to allocate when it is loaded.
        attachment: bytes to keep with it.

    Raises:
        ReadingFileError: the file can't be written.
    """
    about = {
        "fingerprint": dict(fingerprint),
        "settings": settings and asdict(settings),
        "kinds": list(snapshot.kinds),
        "tokens": len(tokens),
        "capacity": max(capacity, len(tokens)),
    }
    content = {"tokens": torch.tensor(tokens, dtype=torch.int64), **snapshot.tensors}
    if attachment:
        content["attachment"] = torch.frombuffer(bytearray(attachment), dtype=torch.uint8)
    entries = {name: (_DTYPES[x.dtype], tuple(x.shape)) for name, x in content.items()}
    described = json.dumps(about, ensure_ascii=False)
    try:
        with replacing(path) as file:
            file.write(_header_bytes(entries, described, _UNKNOWN))
            checksum = xxhash.xxh3_128()
            for tensor in content.values():
                for slab in _slabs(tensor):
                    data = _bytes_of(slab.cpu())
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
    blank: Callable[[SelfExtend | None], SelfExtendCache],
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
        cache.set_capacity(header.capacity)
        places = _places(cache, header)
        others = {
            name: torch.empty(shape, dtype=_TORCH[dtype])
            for name, (dtype, shape) in header.entries.items()
            if name not in places
        }
        places |= others
        checksum = xxhash.xxh3_128()
        for name in header.entries:
            for slab in _slabs(places[name]):
                checksum.update(_read_into(file, slab))
        if checksum.hexdigest() != header.data_checksum:
            raise CorruptReadingError("its data has another checksum than when it was written")
    attachment = others.get("attachment", torch.empty(0, dtype=torch.uint8))
    tokens = tuple(others["tokens"].tolist())
    return Saved(tokens, header.settings, cache, bytes(_bytes_of(attachment)))


def tokens_in(
    path: Path, fingerprint: Mapping[str, str]
) -> tuple[tuple[int, ...], SelfExtend | None]:
    """Return the tokens of a file and their settings, without their keys; not verified.

    Raises:
        CacheMismatchError, CorruptReadingError, ReadingFileError: as ``load``.
    """
    with _reading(path, fingerprint) as (file, header):
        tokens = torch.empty(header.tokens, dtype=torch.int64)
        _read_into(file, tokens)  # they come first
        return tuple(tokens.tolist()), header.settings


def header_of(path: Path, fingerprint: Mapping[str, str]) -> Header:
    """Return what a file says of itself, without its data.

    Raises:
        CacheMismatchError, CorruptReadingError, ReadingFileError: as ``load``.
    """
    with _reading(path, fingerprint) as (_, header):
        return header


@contextmanager
def _reading(path: Path, fingerprint: Mapping[str, str]) -> Iterator[tuple[BinaryIO, Header]]:
    """Yield a file of this fingerprint, at the begin of its data; what goes wrong names it."""
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            _check_fingerprint(header.fingerprint, fingerprint)
            yield file, header
    except CorruptReadingError as error:
        raise CorruptReadingError(
            f"{path} is damaged or no saved reading: {error}; read the documents again"
        ) from error
    except CacheMismatchError as error:
        raise CacheMismatchError(f"{path} can't be used here: {error}") from error
    except OSError as error:
        raise ReadingFileError(f"can't read {path}: {error.strerror or error}") from error


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


def _read_header(file: BinaryIO) -> Header:
    """Return the header of a file, every byte of it verified.

    Raises:
        CorruptReadingError: it is damaged, of another format or version, or the file is longer or
            shorter than it says.
    """
    size, first = os.fstat(file.fileno()).st_size, file.read(_LENGTH_BYTES)
    if len(first) < _LENGTH_BYTES:
        raise CorruptReadingError(f"it has {size} bytes, too few for any header")
    length: int = struct.unpack("<Q", first)[0]
    if length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise CorruptReadingError(f"its header would be {length} bytes, in a file of {size}")
    text = file.read(length)
    try:
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
        settings = None if settings is None else SelfExtend(**settings)
        header = Header(**about, settings=settings, entries=entries, data_checksum=data_checksum)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CorruptReadingError):
            raise
        raise CorruptReadingError(f"its header makes no sense ({error!r})") from error
    data_bytes = sum(_TORCH[dtype].itemsize * prod(shape) for dtype, shape in entries.values())
    expected = len(first) + len(text) + data_bytes
    if expected != size:
        raise CorruptReadingError(f"it has {size} bytes, and had {expected} when written")
    return header


def _check_fingerprint(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    differences = [
        f"{part} {theirs.get(part, 'unknown')} there, {ours.get(part, 'unknown')} here"
        for part in sorted({*theirs, *ours})
        if theirs.get(part) != ours.get(part)
    ]
    if differences:
        raise CacheMismatchError(
            f"it was read by another model or in another way: {'; '.join(differences)}; "
            "use what it was read with, or read the documents again"
        )


def _places(cache: SelfExtendCache, header: Header) -> dict[str, Tensor]:
    """Allocate the tensors of a file in a cache and return them, to be written to, by name.

    Raises:
        CacheMismatchError: the model's own cache is of other layers, shapes or types.
    """
    blank = snapshot(cache)
    if blank.kinds != header.kinds:
        raise CacheMismatchError("its layers are of other kinds than this model's")
    stored = {name: x for name, x in header.entries.items() if name.startswith("layers.")}
    odd = sorted(blank.tensors.keys() ^ stored.keys())
    if odd:
        where = "in the file" if odd[0] in stored else "in this model's cache"
        raise CacheMismatchError(f"{odd[0]} is {where} alone; it was read by another model")
    for name, (dtype, shape) in stored.items():
        like = blank.tensors[name]
        # keys and values may differ in their number of tokens, states in nothing
        free = 2 if ".keys" in name or ".values" in name else None
        fits = [n for i, n in enumerate(shape) if i != free] == [
            n for i, n in enumerate(like.shape) if i != free
        ]
        if _DTYPES[like.dtype] != dtype or not fits:
            raise CacheMismatchError(
                f"{name} is {dtype} {list(shape)} in the file, and this model makes "
                f"{_DTYPES[like.dtype]} {list(like.shape)} (of another number of tokens)"
            )
    places: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        prefix = f"layers.{index}."
        if isinstance(layer, FullLayer):
            layer = cache.layers[index] = layer.emptied(
                header.tokens, header.settings, cache.capacity
            )
            places |= {prefix + name: x for name, x in layer.tensors().items()}
        else:
            shapes = {n[len(prefix) :]: s for n, (_, s) in stored.items() if n.startswith(prefix)}
            places |= {prefix + n: x for n, x in _refill(layer, shapes, header.tokens)}
    for name, place in places.items():
        if tuple(place.shape) != stored[name][1]:
            raise CorruptReadingError(
                f"{name} is {list(stored[name][1])}, and {header.tokens} tokens make "
                f"{list(place.shape)}"
            )
    return places


def _refill(
    layer: object, shapes: Mapping[str, tuple[int, ...]], tokens: int
) -> Iterator[tuple[str, Tensor]]:
    """Allocate the tensors of a layer that does not keep all tokens."""
    for name, shape in shapes.items():
        if name in ("keys", "values"):
            place = getattr(layer, name).new_empty(shape)
            setattr(layer, name, place)
        else:
            states, index = name.split(".")
            place = getattr(layer, states)[int(index)].new_empty(shape)
            getattr(layer, states)[int(index)] = place
        yield name, place
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = tokens


def _slabs(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in contiguous slices, in the order of its elements, without a copy."""
    if tensor.is_contiguous() or tensor.ndim == 0:
        yield tensor
    else:
        for part in tensor.unbind():
            yield from _slabs(part)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in memory, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


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
