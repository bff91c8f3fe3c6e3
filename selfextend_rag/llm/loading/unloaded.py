"""What a model that is not loaded would take: from its configuration and the headers of its files.

It is built on torch's meta device, without memory, unless that was done before: see `shapes`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from selfextend_rag.errors import ModelLoadError, UnknownMemoryError
from selfextend_rag.llm.devices import MemoryLimit, budget_of
from selfextend_rag.llm.loading import shapes
from selfextend_rag.llm.loading.gguf import in_transformers_form
from selfextend_rag.llm.loading.sources import loaded
from selfextend_rag.planning import MemoryBudget, ModelMemory

if TYPE_CHECKING:  # plans do without what builds models, where shapes are known
    from torch import nn
    from transformers import PreTrainedModel

DeviceMap = str | int | torch.device | Mapping[str, object] | None
"""A device, the device of each part by the beginning of its name, or a word of accelerate's."""

_LONGEST_HEADER = 100_000_000


def budget_of_source(
    source: str | os.PathLike[str],
    config: PreTrainedConfig,
    *,
    device_map: DeviceMap = None,
    dtype: str = "auto",
    limit: MemoryLimit | None = None,
    kv_bits: int | None = None,
    weight_bits: int | None = None,
) -> MemoryBudget | None:
    """Return what memory there is for a model that is not loaded; None if its needs are unknown.

    The sizes of weights come from the headers of the safetensors files in a folder, and otherwise
    from the model built without weights. Options are those that it would be loaded with.

    Raises:
        UnknownMemoryError: a limit is given, and what the model needs is not known.
        UnsupportedModelError: ``kv_bits`` would change nothing, or ``weight_bits`` can't be had.
        ModelLoadError: no causal language model can be built from the configuration, or
            ``device_map`` asks for devices that are not there.
        ValueError: the limit is out of range.
    """
    source, _ = in_transformers_form(source, {}, weights=False)
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    if weight_bits == 4:
        chosen = chosen or torch.bfloat16
    sizes = sizes_in_folder(Path(source)) if chosen is None else {}
    asked = _Asked(os.fspath(source), config, chosen, sizes, device_map, kv_bits, weight_bits)
    try:
        memory = asked.memory()
    except UnknownMemoryError:
        if limit is not None:
            raise
        return None
    return budget_of(memory, limit, None, loaded=False)


@dataclass(frozen=True)
class _Asked:
    """A model, and how it would be loaded."""

    source: str
    config: PreTrainedConfig
    dtype: torch.dtype | None
    sizes: Mapping[str, int]  # of its weights in files, by name
    device_map: DeviceMap
    kv_bits: int | None
    weight_bits: int | None

    def memory(self) -> ModelMemory:
        """Return what its memory follows from: as it was measured before, or measured now."""
        path = None
        if self.device_map in (None, "cpu"):  # on others it depends on what the machine has
            options = [str(self.dtype), dict(self.sizes), self.kv_bits, self.weight_bits]
            path = shapes.path_of(self.config, options)
        memory = None if path is None else shapes.recall(path)
        if memory is None:
            memory = self._measured()
            if path is not None:
                shapes.remember(path, memory)
        return memory

    def _measured(self) -> ModelMemory:
        from selfextend_rag.llm.memory import model_memory, sizes_of
        from selfextend_rag.model.weights import rounded_sizes

        config = copy.deepcopy(self.config)  # to which a model writes its attention
        empty, sizes = empty_model(self.source, config, self.dtype), self.sizes
        if self.weight_bits is not None:
            sizes = rounded_sizes(empty, self.weight_bits)
        elif sizes:
            sizes = {**{name: buffer.nbytes for name, buffer in empty.named_buffers()}, **sizes}
        placed = _placement(empty, self.device_map)
        return model_memory(empty, sizes or sizes_of(empty), placed, kv_bits=self.kv_bits)


def empty_model(
    source: str | os.PathLike[str], config: PreTrainedConfig, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Return a model without weights, on torch's meta device: names and shapes alone.

    Raises:
        ModelLoadError: no causal language model can be built from the configuration.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    chosen = dtype or getattr(config, "dtype", None) or torch.float32

    def build(_: str, **where: object) -> object:
        with torch.device("meta"):
            if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                return AutoModelForCausalLM.from_config(config, dtype=chosen)
            if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
                return AutoModelForImageTextToText.from_config(config, dtype=chosen)
            return AutoModelForCausalLM.from_config(config, dtype=chosen)  # or raises

    model: PreTrainedModel = loaded(source, "model", build, {"local_files_only": True})
    model.eval()
    return model


def _placement(model: nn.Module, device_map: DeviceMap) -> Mapping[str, object]:
    """Return the device of each part of a model, by the beginnings of names."""
    if isinstance(device_map, Mapping):
        return device_map
    name = "cpu" if device_map is None else str(device_map)
    if name not in ("auto", "balanced", "balanced_low_0", "sequential"):
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ModelLoadError(f"can't plan for the device {name}: torch finds no CUDA device")
        with suppress(RuntimeError):
            if torch.device(name).type != "meta":
                return {"": name}
        raise ModelLoadError(
            f"can't plan for the device {name!r}: torch has none of that name; take cpu, cuda, "
            "cuda:1, ... or auto"
        )
    try:
        from accelerate import infer_auto_device_map  # type: ignore[import-untyped]  # ships no types
    except ImportError as error:
        raise ModelLoadError(
            f"device_map {name!r} needs accelerate; install selfextend-rag[gpu]"
        ) from error
    whole = getattr(model, "_no_split_modules", None) or []
    found: Mapping[str, object] = infer_auto_device_map(
        model, no_split_module_classes=list(whole), dtype=model.dtype
    )
    return found


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
