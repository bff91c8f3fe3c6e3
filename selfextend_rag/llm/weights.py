"""What a model's weights take and where they are, from the model, its files' headers or its plan.

Weights are never loaded here: files are read up to the end of their headers, and a model that is
not there is built on torch's meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from selfextend_rag.cache.identity import parts_of
from selfextend_rag.errors import ModelLoadError, UnsupportedModelError
from selfextend_rag.kv_bits import why_not_rounded
from selfextend_rag.planning.layers import LayerShape, layer_shapes
from selfextend_rag.planning.memory import DeviceShare, ModelMemory
from selfextend_rag.planning.workspace import work_shape

_NUMBER = re.compile(r"\.(\d+)\.")
_OFFLOADED = ("cpu", "disk")
_LONGEST_HEADER = 100_000_000


def memory_of_model(model: PreTrainedModel, kv_bits: int | None = None) -> ModelMemory:
    """Return what the memory of a loaded model follows from.

    Raises:
        UnknownMemoryError: its configuration does not tell what its layers keep.
        UnsupportedModelError: ``kv_bits`` would change nothing.
    """
    placed = getattr(model, "hf_device_map", None) or {"": str(model.device)}
    sizes = dict(_sizes(model))
    return model_memory(model, sizes, placed, itemsize=_precision(model), kv_bits=kv_bits)


def model_memory(
    model: nn.Module,
    sizes: Mapping[str, int],
    placed: Mapping[str, Any],
    *,
    itemsize: int,
    kv_bits: int | None = None,
) -> ModelMemory:
    """Return what the memory of a model follows from.

    Args:
        model: with weights or on the meta device.
        sizes: bytes of each of its weights, by name.
        placed: the device of modules, by the beginning of their names, as accelerate has it.
        itemsize: bytes of a number in the precision it runs in.
        kv_bits: that keys and values are kept in; None for that precision.

    Raises:
        UnknownMemoryError: its configuration does not tell what its layers keep.
        UnsupportedModelError: ``kv_bits`` would change nothing.
    """
    config: Any = model.config
    layers = layer_shapes(config)
    if kv_bits is not None and not any(layer.can_be_rounded for layer in layers):
        raise UnsupportedModelError(why_not_rounded(kv_bits, (layer.kind for layer in layers)))
    shares = _shares(sizes, {name: _named(place) for name, place in placed.items()}, layers)
    accepted = inspect.signature(model.forward).parameters
    return ModelMemory(
        layers,
        itemsize,
        work_shape(
            config,
            on_cpu=all(share.name == "cpu" for share in shares),
            last_logits="logits_to_keep" in accepted,
        ),
        shares,
        rewinds=not any(layer.states for layer in layers),
        kv_bits=kv_bits,
    )


def sizes_in_folder(folder: Path) -> dict[str, int]:
    """Return the bytes of each weight in the safetensors files of a folder; empty without any.

    Raises:
        ModelLoadError: a file's header can't be read.
    """
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, _LONGEST_HEADER)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    sizes[name] = end - begin
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelLoadError(f"can't read the header of {path}: {error!r}") from error
    return sizes


def _sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the bytes of every weight and buffer; those that are shared count once."""
    seen = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        size = 0
        for part in parts_of(tensor):
            storage = part.untyped_storage()
            key = (part.device.type, storage.data_ptr()) if storage.data_ptr() else id(part)
            if key not in seen:
                seen.add(key)
                size += part.nbytes
        if size:
            yield name, size


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Return the bytes of every weight of a model; on the meta device too."""
    return dict(_sizes(model))


def _precision(model: PreTrainedModel) -> int:
    return int(torch.empty((), dtype=model.dtype, device="meta").element_size())


def _named(place: Any) -> str:
    """Return the name of a device as it is given in a device map."""
    if isinstance(place, int):
        return f"cuda:{place}"
    name = str(place)
    return "cuda:0" if name == "cuda" else name


def _shares(
    sizes: Mapping[str, int], placed: Mapping[str, str], layers: tuple[LayerShape, ...]
) -> tuple[DeviceShare, ...]:
    """Return what each device holds and runs.

    Modules that are offloaded to the CPU or the disk run on the first other device, where they are
    brought one at a time.
    """
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
