"""What a model needs in memory, on which device."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from selfextend_rag.attention.triton.dispatch import why_not
from selfextend_rag.cache.identity import parts_of
from selfextend_rag.cache.quantised import why_not_rounded
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.llm.devices import device_name
from selfextend_rag.model.footprint import layer_shapes, vision_shape, work_shape
from selfextend_rag.model.weights import packed_bytes
from selfextend_rag.planning import ModelMemory
from selfextend_rag.planning.memory import DeviceShare
from selfextend_rag.planning.workspace import LayerShape

_NUMBER = re.compile(r"\.(\d+)\.")
_OFFLOADED = ("cpu", "disk")


def memory_of_model(model: PreTrainedModel, kv_bits: int | None = None) -> ModelMemory:
    """Return what the memory of a loaded model follows from; errors as of `model_memory`."""
    placed = getattr(model, "hf_device_map", None) or {"": str(model.device)}
    return model_memory(model, sizes_of(model), placed, kv_bits=kv_bits)


def model_memory(
    model: PreTrainedModel,
    sizes: Mapping[str, int],
    placed: Mapping[str, object],
    *,
    kv_bits: int | None = None,
) -> ModelMemory:
    """Return what the memory of a model follows from.

    Args:
        model: with weights or on the meta device.
        sizes: bytes of each of its weights, by name.
        placed: the device of modules, by the beginning of their names, as accelerate has it.
        kv_bits: that keys and values are kept in; None for the model's precision.

    Raises:
        UnknownMemoryError: what its layers keep can't be measured.
        UnsupportedModelError: ``kv_bits`` would change nothing.
    """
    layers, itemsize = layer_shapes(model), model.dtype.itemsize
    if kv_bits is not None and not any(layer.rounded_bytes for layer in layers):
        raise UnsupportedModelError(why_not_rounded(kv_bits, (layer.kind for layer in layers)))
    places = {name: device_name(place) for name, place in placed.items()}
    shares = tuple(
        replace(share, grouped_keys=_keeps_grouped_keys(share.name, layers, model.dtype))
        for share in _shares(sizes, places, layers)
    )
    return ModelMemory(
        layers,
        itemsize,
        work_shape(
            model.config,
            layers,
            itemsize=itemsize,
            on_cpu=all(share.name == "cpu" for share in shares),
            last_logits="logits_to_keep" in inspect.signature(model.forward).parameters,
        ),
        shares,
        kv_bits=kv_bits,
        vision=vision_shape(model.config),
    )


def _keeps_grouped_keys(name: str, layers: tuple[LayerShape, ...], dtype: torch.dtype) -> bool:
    """Return whether extended layers on a device keep grouped keys: the Triton kernels do not."""
    if not name.startswith("cuda") or not torch.cuda.is_available():
        return True
    for layer in layers:
        if layer.extended and layer.heads:
            dim, value = layer.head_size, layer.attended_size // layer.heads - layer.head_size
            q, v = (torch.empty(1, 1, 1, d, dtype=dtype, device=name) for d in (dim, value))
            if why_not(q, q, v, 1.0):
                return True
    return False


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Return the bytes of every weight and buffer of a model; those that are shared count once."""
    seen = set()
    sizes: dict[str, int] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        for part in parts_of(tensor):
            storage = part.untyped_storage()
            key = (part.device.type, storage.data_ptr()) if storage.data_ptr() else id(part)
            if key not in seen:
                seen.add(key)
                sizes[name] = sizes.get(name, 0) + part.nbytes
    for name, module in model.named_modules():
        if packed := packed_bytes(module):
            sizes[f"{name}.weight"] = packed
    return sizes


def _shares(
    sizes: Mapping[str, int], placed: Mapping[str, str], layers: tuple[LayerShape, ...]
) -> tuple[DeviceShare, ...]:
    """Return what each device holds and runs; the first one runs what is offloaded."""
    main = next((place for place in placed.values() if place not in _OFFLOADED), "cpu")
    weights: dict[str, int] = {}
    streamed: dict[str, int] = {}
    runs: dict[int, str] = {}
    for name, size in sizes.items():
        place = _place_of(name, placed, main)
        if place != "disk":
            weights[place] = weights.get(place, 0) + size
        offloaded = place == "disk" or (place == "cpu" and main != "cpu")
        number = _NUMBER.search(name)
        if number is not None:
            runs[int(number[1])] = main if offloaded else place
        if offloaded:
            part = name[: number.end()] if number else name
            streamed[part] = streamed.get(part, 0) + size
    held = {name: place for name, place in runs.items() if name < len(layers)} or {0: main}
    modules = max(held) + 1
    where = [held.get(index * modules // len(layers), main) for index in range(len(layers))]
    return tuple(
        DeviceShare(
            place,
            weights.get(place, 0),
            tuple(index for index, run in enumerate(where) if run == place),
            max(streamed.values(), default=0) if place == main else 0,
        )
        for place in dict.fromkeys((main, *weights, *where))
    )


def _place_of(name: str, placed: Mapping[str, str], main: str) -> str:
    matching = [m for m in placed if not m or name == m or name.startswith(f"{m}.")]
    return placed[max(matching, key=len)] if matching else main
