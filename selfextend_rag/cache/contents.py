"""What a cache holds, as named tensors, and a cache filled with them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError
from selfextend_rag.positions import SelfExtend

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
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

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of stored tensors by their names."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Views of all that a cache holds now; appending to the cache does not change them."""

    kinds: Sequence[str]
    tensors: Mapping[str, Tensor]


def snapshot(cache: SelfExtendCache) -> Snapshot:
    """Return what a cache holds; grouped keys are left out, because they can be made again.

    Raises:
        CacheMismatchError: a layer or tensor of a kind that can't be saved.
    """
    return Snapshot(kinds(cache), tensors(cache))


def kinds(cache: SelfExtendCache) -> list[str]:
    """Return the names of the kinds of layers.

    Raises:
        CacheMismatchError: a layer of a kind that is not understood, such as one of others that
            is quantised.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) not in _KINDS:
            raise CacheMismatchError(
                f"layer {index} keeps its keys in a {type(layer).__name__}, which can't be saved; "
                f"these can: {', '.join(kind.__name__ for kind in _KINDS)}"
            )
    return [type(layer).__name__ for layer in cache.layers]


def tensors(cache: SelfExtendCache) -> dict[str, Tensor]:
    """Return all tensors of a cache by name, as views.

    Raises:
        CacheMismatchError: one of a type that can't be saved.
    """
    found = {
        f"layers.{index}.{name}": tensor
        for index, layer in enumerate(cache.layers)
        for name, tensor in _tensors_of(layer)
    }
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES:
            raise CacheMismatchError(f"{name} is of type {tensor.dtype}, which can't be saved")
    return found


def _tensors_of(layer: Any) -> Iterator[tuple[str, Tensor]]:
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


def slabs(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in contiguous pieces, in the order of its elements, without a copy."""
    if tensor.is_contiguous() or tensor.ndim == 0:
        yield tensor
    else:
        for part in tensor.unbind():
            yield from slabs(part)


def refill(
    cache: SelfExtendCache, stored: Shapes, tokens: int, extension: SelfExtend | None
) -> dict[str, Tensor]:
    """Make room in a cache for stored tensors and return the places to write them to, by name.

    Args:
        cache: one that the model has filled with any tokens; shows kinds, shapes, types, devices.
        stored: what there is to come.
        tokens: how many they are.
        extension: the settings under which they were read.

    Raises:
        CacheMismatchError: the model's own cache is of other layers, shapes or types.
    """
    own = tensors(cache)
    ours = {name: x for name, x in stored.items() if name.startswith("layers.")}
    if own.keys() != ours.keys():
        odd = sorted(own.keys() ^ ours.keys())[0]
        where = "in the file" if odd in ours else "in this model's cache"
        raise CacheMismatchError(f"{odd} is {where} alone; it was read by another model")
    for name, (dtype, shape) in ours.items():
        like = own[name]
        if DTYPES[like.dtype] != dtype or not _fits(name, shape, like):
            raise CacheMismatchError(
                f"{name} is {dtype} {list(shape)} in the file, and this model makes "
                f"{DTYPES[like.dtype]} {list(like.shape)} (of another number of tokens)"
            )
    places: dict[str, Tensor] = {}
    for index, layer in enumerate(cache.layers):
        prefix = f"layers.{index}."
        shapes = {n.removeprefix(prefix): s for n, (_, s) in ours.items() if n.startswith(prefix)}
        if isinstance(layer, FullLayer):
            layer = cache.layers[index] = layer.emptied(tokens, extension, cache.capacity)
            for name, place in layer.tensors().items():
                if shapes[name] != tuple(place.shape):
                    raise CorruptReadingError(
                        f"{prefix}{name} is {list(shapes[name])}, and {tokens} tokens make "
                        f"{list(place.shape)}"
                    )
                places[prefix + name] = place
        else:
            places |= {prefix + name: x for name, x in _refill_others(layer, shapes, tokens)}
    return places


def _fits(name: str, shape: Sequence[int], like: Tensor) -> bool:
    """Keys and values may differ in their number of tokens, states in nothing."""
    if ".keys" in name or ".values" in name:
        if len(shape) == 5:  # scales have pairs in their last dimension
            return [*shape[:2], *shape[3:]] == [*like.shape[:2], *like.shape[3:]]
        return len(shape) == 4 and [*shape[:2], shape[3]] == [*like.shape[:2], like.shape[3]]
    return tuple(shape) == tuple(like.shape)


def _refill_others(
    layer: Any, shapes: Mapping[str, tuple[int, ...]], tokens: int
) -> Iterator[tuple[str, Tensor]]:
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
