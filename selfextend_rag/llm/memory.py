"""What memory there is for a model, loaded or only known by its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from selfextend_rag.errors import ModelLoadError, UnknownMemoryError
from selfextend_rag.llm.loading import empty_model
from selfextend_rag.llm.machine import MemoryLimit, device_memory, limited_memory
from selfextend_rag.llm.weights import memory_of_model, model_memory, sizes_in_folder, sizes_of
from selfextend_rag.planning.budget import MemoryBudget
from selfextend_rag.planning.memory import ModelMemory

BudgetNow = Callable[[], MemoryBudget | None]
"""Looks at the machine and returns what there is now; None if the model's needs are not known."""


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
            itemsize=empty.dtype.itemsize,
            kv_bits=kv_bits,
        )
    except UnknownMemoryError:
        if limit is not None:
            raise
        return None
    return _budget_now(memory, limit, None, loaded=False)()


def placement(model: Any, device_map: Any) -> Mapping[str, Any]:
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
    return infer_auto_device_map(model, no_split_module_classes=list(whole), dtype=model.dtype)


def _runs_models(name: str) -> bool:
    try:
        return torch.device(name).type != "meta"
    except RuntimeError:
        return False


def _buffers(model: Any) -> dict[str, int]:
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
