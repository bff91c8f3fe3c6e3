"""What a model needs in memory, loaded or only known by its configuration, and where.

Weights are never loaded here: files are read up to the end of their headers, and a model that is
not there is built on torch's meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfextend_rag.attention.triton import why_not
from selfextend_rag.cache.identity import parts_of
from selfextend_rag.errors import ModelLoadError, UnknownMemoryError, UnsupportedModelError
from selfextend_rag.kv_bits import why_not_rounded
from selfextend_rag.llm.ledger import (
    BudgetNow,
    MemoryLimit,
    device_memory,
    device_name,
    limited_memory,
)
from selfextend_rag.llm.loading import empty_model
from selfextend_rag.model.footprint import layer_shapes, work_shape
from selfextend_rag.planning import MemoryBudget, ModelMemory
from selfextend_rag.planning.layers import LayerShape
from selfextend_rag.planning.memory import DeviceShare

_NUMBER = re.compile(r"\.(\d+)\.")
_OFFLOADED = ("cpu", "disk")
_LONGEST_HEADER = 100_000_000


def budget_of_model(
    model: PreTrainedModel,
    limit: MemoryLimit | None = None,
    chunk_size: int | None = None,
    kv_bits: int | None = None,
) -> BudgetNow:
    """Return a way to ask what memory there is for a loaded model.

    Args:
        model: with its weights.
        limit: bytes for it; by default what is free now, and what its weights hold.
        chunk_size: tokens of a prompt to run at once; by default as many as memory allows.
        kv_bits: that keys and values are kept in; None for the model's precision.

    Raises:
        UnknownMemoryError: a limit is given, and what the model needs is not known.
        UnsupportedModelError: ``kv_bits`` would change nothing.
        ValueError: the limit is out of range.
    """
    try:
        memory = memory_of_model(model, kv_bits)
    except UnknownMemoryError:
        if limit is not None:
            raise
        return lambda: None
    return _budget_now(memory, limit, chunk_size, loaded=True)


def budget_of_source(
    source: str | os.PathLike[str],
    config: PreTrainedConfig,
    *,
    device_map: Any = None,
    dtype: str = "auto",
    limit: MemoryLimit | None = None,
    kv_bits: int | None = None,
) -> MemoryBudget | None:
    """Return what memory there is for a model that is not loaded; None if its needs are unknown.

    The sizes of weights come from the headers of the safetensors files in a folder, and otherwise
    from the model built without weights.

    Args:
        source: hub id or folder.
        config: its configuration.
        device_map: where the weights would go; None for the CPU.
        dtype: precision that the weights would be loaded in.
        limit: bytes for it; by default what is free now.
        kv_bits: that keys and values would be kept in; None for the model's precision.

    Raises:
        UnknownMemoryError: a limit is given, and what the model needs is not known.
        UnsupportedModelError: ``kv_bits`` would change nothing.
        ModelLoadError: no causal language model can be built from the configuration, or
            ``device_map`` asks for devices that are not there.
        ValueError: the limit is out of range.
    """
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    empty = empty_model(source, config, chosen)
    folder = Path(source)
    stored = sizes_in_folder(folder) if chosen is None and folder.is_dir() else {}
    try:
        memory = model_memory(
            empty,
            {**_buffers(empty), **stored} if stored else sizes_of(empty),
            placement(empty, device_map),
            kv_bits=kv_bits,
        )
    except UnknownMemoryError:
        if limit is not None:
            raise
        return None
    return _budget_now(memory, limit, None, loaded=False)()


def placement(model: nn.Module, device_map: Any) -> Mapping[str, Any]:
    """Return the device of each part of a model, by the beginnings of names.

    Args:
        model: with or without weights.
        device_map: None, a device, a map, or a word of accelerate's, such as ``"auto"``.

    Raises:
        ModelLoadError: the device is not there, or accelerate is needed and missing.
    """
    if isinstance(device_map, Mapping):
        return device_map
    name = "cpu" if device_map is None else str(device_map)
    if name not in ("auto", "balanced", "balanced_low_0", "sequential"):
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ModelLoadError(f"can't plan for the device {name}: torch finds no CUDA device")
        if not _runs_models(name):
            raise ModelLoadError(
                f"can't plan for the device {name!r}: torch has none of that name; take cpu, cuda, "
                "cuda:1, ... or auto"
            )
        return {"": name}
    try:
        from accelerate import infer_auto_device_map  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise ModelLoadError(
            f"device_map {name!r} needs accelerate; install selfextend-rag[gpu]"
        ) from error
    whole = getattr(model, "_no_split_modules", None) or []
    found: Mapping[str, Any] = infer_auto_device_map(
        model, no_split_module_classes=list(whole), dtype=model.dtype
    )
    return found


def _runs_models(name: str) -> bool:
    try:
        return torch.device(name).type != "meta"
    except RuntimeError:
        return False


def _buffers(model: nn.Module) -> dict[str, int]:
    return {name: buffer.nbytes for name, buffer in model.named_buffers()}


def _budget_now(
    memory: ModelMemory, limit: MemoryLimit | None, chunk_size: int | None, *, loaded: bool
) -> BudgetNow:
    names = [share.name for share in memory.shares if share.name != "disk"]
    if limit is not None:
        fixed = MemoryBudget(memory, limited_memory(limit, names), chunk_size)
        return lambda: fixed
    held = {share.name: share.weights_bytes for share in memory.shares} if loaded else {}
    return lambda: MemoryBudget(memory, device_memory(names, held), chunk_size)


def memory_of_model(model: PreTrainedModel, kv_bits: int | None = None) -> ModelMemory:
    """Return what the memory of a loaded model follows from.

    Raises:
        UnknownMemoryError: what its layers keep can't be measured.
        UnsupportedModelError: ``kv_bits`` would change nothing.
    """
    placed = getattr(model, "hf_device_map", None) or {"": str(model.device)}
    return model_memory(model, sizes_of(model), placed, kv_bits=kv_bits)


def model_memory(
    model: PreTrainedModel,
    sizes: Mapping[str, int],
    placed: Mapping[str, Any],
    *,
    kv_bits: int | None = None,
) -> ModelMemory:
    """Return what the memory of a model follows from.

    Args:
        model: with weights or on the meta device.
        sizes: bytes of each of its weights, by name.
        placed: the device of modules, by the beginning of their names, as accelerate has it.
        kv_bits: that keys and values are kept in; None for that precision.

    Raises:
        UnknownMemoryError: what its layers keep can't be measured.
        UnsupportedModelError: ``kv_bits`` would change nothing.
    """
    layers = layer_shapes(model)
    if kv_bits is not None and not any(layer.can_be_rounded for layer in layers):
        raise UnsupportedModelError(why_not_rounded(kv_bits, (layer.kind for layer in layers)))
    places = {name: device_name(place) for name, place in placed.items()}
    shares = tuple(
        replace(share, grouped_keys=_keeps_grouped_keys(share.name, layers, model.dtype))
        for share in _shares(sizes, places, layers)
    )
    return ModelMemory(
        layers,
        model.dtype.itemsize,
        work_shape(
            model.config,
            layers,
            itemsize=model.dtype.itemsize,
            on_cpu=all(share.name == "cpu" for share in shares),
            last_logits="logits_to_keep" in inspect.signature(model.forward).parameters,
        ),
        shares,
        rewinds=not any(layer.states for layer in layers),
        kv_bits=kv_bits,
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
    return sizes


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
