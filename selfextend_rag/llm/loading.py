"""Models and tokenizers from a hub id, folder or GGUF file: loaded, or looked at, to plan for them.

What can't be found or read is one kind of error. For a plan nothing is loaded: files are read up to
the end of their headers, and a model is built on torch's meta device, without memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from selfextend_rag.errors import (
    ModelLoadError,
    UnknownMemoryError,
    UnsupportedModelError,
    in_short,
)
from selfextend_rag.llm.bars import bars_if_watched
from selfextend_rag.llm.gguf import in_transformers_form
from selfextend_rag.llm.hub import hub_answers
from selfextend_rag.llm.memory import MemoryLimit, budget_of, model_memory, sizes_of
from selfextend_rag.model import with_full_attention
from selfextend_rag.model.weights import check_weight_bits, round_weights, rounded_sizes
from selfextend_rag.planning import MemoryBudget
from selfextend_rag.text.pictures import PicturePrompts, tokenizer_of
from selfextend_rag.text.prompts import PromptForm

log = logging.getLogger(__name__)

DeviceMap = str | int | torch.device | Mapping[str, object] | None
"""A device, the device of each part by the beginning of its name, or a word of accelerate's."""

# the last by torch, asked for a device that it was not built for
_FILE_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError)
_LOADING_ERRORS = (*_FILE_ERRORS, AssertionError)
_SHARED_OPTIONS = frozenset(
    ("cache_dir", "code_revision", "force_download", "local_files_only", "revision", "subfolder")
) | {"token", "trust_remote_code"}
_OF_WEIGHTS = frozenset(
    ("attn_implementation", "device_map", "dtype", "experts_implementation", "quantization_config")
) | {"torch_dtype"}  # that a configuration has too, and from_pretrained has to see itself

_TOKENIZER_FILE = re.compile(r"token|vocab|merges|spiece|tekken|.*\.(model|tiktoken)$")
_LONGEST_HEADER = 100_000_000


def load_model(
    source: str | os.PathLike[str],
    *,
    full_attention: bool = False,
    weight_bits: int | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return a causal language model, or one that takes pictures too, with its weights.

    It is in evaluation mode.

    Args:
        source: hub id, folder or GGUF file.
        full_attention: load it without its sliding windows, see `with_full_attention`.
        weight_bits: round its weights to so many bits, see `round_weights`.
        options: for ``from_pretrained`` of ``AutoModelForCausalLM``, or of
            ``AutoModelForImageTextToText`` for a family that has no model of text alone.

    Raises:
        ModelLoadError: it can't be found or read, or weights of it are missing.
        UnsupportedModelError: its windows can't be switched off, or its weights not be rounded.
        ValueError: there are no such ``weight_bits``.
    """
    if weight_bits is not None:
        options = _for_rounding(weight_bits, options)
    source, options = in_transformers_form(source, options, weights=True)
    if full_attention:
        options = _without_windows(source, options)
    model: PreTrainedModel
    auto = AutoModelForImageTextToText if _takes_pictures_alone(source, options) else None
    load = (auto or AutoModelForCausalLM).from_pretrained
    with bars_if_watched():
        model, info = _loaded(source, "model", load, {**options, "output_loading_info": True})
    missing = sorted(info["missing_keys"]) or sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelLoadError(
            f"the model {os.fspath(source)} lacks {len(missing)} of its weights, such as "
            f"{missing[0]}; is it a causal language model, and whole?"
        )
    model.eval()
    if weight_bits is not None:
        round_weights(model, weight_bits)
    return model


def _for_rounding(weight_bits: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return options for a model whose weights are rounded next: 4 bits need bfloat16."""
    check_weight_bits(weight_bits)
    if options.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"weight_bits={weight_bits} can't be had: quantization_config quantises the weights; "
            "give one of the two"
        )
    if weight_bits == 4 and options.get("dtype", "auto") in (None, "auto"):
        return {**options, "dtype": torch.bfloat16}
    return options


def _without_windows(source: str | os.PathLike[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return options whose ``config`` has full attention, and what they would have changed in it.

    Given with a configuration, from_pretrained would hand such options to the model's constructor.
    """
    if options.get("config") is not None:
        return {**options, "config": with_full_attention(options["config"])}
    # switched off by the options too, a window still says for which distances the model was trained
    changes = {
        name: value
        for name, value in options.items()
        if name not in _OF_WEIGHTS and (name, value) != ("sliding_window", None)
    }
    changes["return_unused_kwargs"] = True
    config, unused = _loaded(source, "configuration", AutoConfig.from_pretrained, changes)
    kept = {name: options[name] for name in options.keys() & (_OF_WEIGHTS | _SHARED_OPTIONS)}
    return {**unused, **kept, "config": with_full_attention(config)}


def load_tokenizer(source: str | os.PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; options and errors as of `load_config`."""
    source, options = in_transformers_form(source, options, weights=False)
    found = _loaded(source, "tokenizer", AutoTokenizer.from_pretrained, _shared(options))
    tokenizer: PreTrainedTokenizerBase = found
    return tokenizer


def load_processor(source: str | os.PathLike[str], **options: Any) -> ProcessorMixin | None:
    """Return the processor of a model that takes pictures; None for a model of text.

    Options are as of `load_config`.

    Raises:
        ModelLoadError: it can't be found or read, or libraries that it needs are missing.
    """
    if str(source).endswith(".gguf") or not _takes_pictures(source, options):
        return None
    try:
        found: ProcessorMixin = _loaded(
            source, "processor", AutoProcessor.from_pretrained, _shared(options)
        )
    except ModelLoadError:
        if _takes_pictures_alone(source, options):
            raise
        return None  # of text alone, as many a copy of such a model is
    return found if isinstance(found, ProcessorMixin) else None


def usable_processor(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm = "auto",
    **options: Any,
) -> ProcessorMixin | None:
    """Return a model's processor; None, and a warning, where it can't be used as prompts need it.

    Options and errors are as of `load_processor`.
    """
    processor = load_processor(source, **options)
    if processor is None:
        return None
    try:
        PicturePrompts(tokenizer_of(processor, tokenizer), processor=processor, form=form)
    except UnsupportedModelError as error:
        log.warning("%s reads text alone: %s", os.fspath(source), error)
        return None
    return processor


def _takes_pictures(source: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    return _model_type(source, options) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _takes_pictures_alone(source: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    """Return whether a model's family has no class for text alone."""
    kind = _model_type(source, options)
    alone = kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return alone and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _model_type(source: str | os.PathLike[str], options: Mapping[str, Any]) -> str:
    """Return what a configuration names its family; empty where it can't be read."""
    if isinstance(given := options.get("config"), PreTrainedConfig):
        return str(given.model_type)
    try:
        config = _loaded(source, "configuration", AutoConfig.from_pretrained, _shared(options))
    except ModelLoadError:  # raised again where the model is loaded
        return ""
    return str(config.model_type)


def load_config(
    source: str | os.PathLike[str], *, full_attention: bool = False, **options: Any
) -> PreTrainedConfig:
    """Return the configuration of a model; of the options, those that concern all files are used.

    Raises:
        ModelLoadError: it can't be found or read.
        UnsupportedModelError: its windows can't be switched off.
    """
    source, options = in_transformers_form(source, options, weights=False)
    config: PreTrainedConfig = _loaded(
        source, "configuration", AutoConfig.from_pretrained, _shared(options)
    )
    return with_full_attention(config) if full_attention else config


def stated_max_new_tokens(source: str | os.PathLike[str], **options: Any) -> int | None:
    """Return the length of answers that a model's generation configuration names, if it does."""
    source, options = in_transformers_form(source, options, weights=False)
    name, options = os.fspath(source), _shared(options)
    try:
        config = GenerationConfig.from_pretrained(
            name, **{**options, **_where_to_look(name, options)}
        )
    except OSError:  # many models have none
        return None
    stated: int | None = config.max_new_tokens
    return stated


def empty_model(
    source: str | os.PathLike[str], config: PreTrainedConfig, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Return a model without weights, on torch's meta device: names and shapes alone.

    Raises:
        ModelLoadError: no causal language model can be built from the configuration.
    """
    chosen = dtype or getattr(config, "dtype", None) or torch.float32

    def build(_: str, **where: object) -> object:
        with torch.device("meta"):
            if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                return AutoModelForCausalLM.from_config(config, dtype=chosen)
            if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
                return AutoModelForImageTextToText.from_config(config, dtype=chosen)
            return AutoModelForCausalLM.from_config(config, dtype=chosen)  # or raises

    model: PreTrainedModel = _loaded(source, "model", build, {"local_files_only": True})
    model.eval()
    return model


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
    empty = empty_model(source, config, chosen)
    sizes = sizes_in_folder(Path(source)) if chosen is None else {}
    if weight_bits is not None:
        sizes = rounded_sizes(empty, weight_bits)
    elif sizes:
        sizes = {**{name: buffer.nbytes for name, buffer in empty.named_buffers()}, **sizes}
    placed = _placement(empty, device_map)
    try:
        memory = model_memory(empty, sizes or sizes_of(empty), placed, kv_bits=kv_bits)
    except UnknownMemoryError:
        if limit is not None:
            raise
        return None
    return budget_of(memory, limit, None, loaded=False)


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


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _SHARED_OPTIONS}


def _loaded(
    source: str | os.PathLike[str],
    what: str,
    load: Callable[..., Any],
    options: Mapping[str, object],
) -> Any:
    name = os.fspath(source)
    if problem := _problem_with(name):
        raise ModelLoadError(f"can't load the {what} {name}: {problem}")
    where = _where_to_look(name, options)
    try:
        return load(name, **{**options, **where})
    except _LOADING_ERRORS as error:
        reason = _missing_in(name, what) or in_short(error)
        if where:
            host = urlsplit(constants.ENDPOINT).hostname
            reason = (
                f"there is no folder of that name, {host} can't be reached, and what was "
                "downloaded before does not hold it"
            )
        raise ModelLoadError(f"can't load the {what} {name}: {reason}") from error


def _problem_with(name: str) -> str:
    """Return what can be seen to be wrong with a name; empty if nothing."""
    if not name.strip():
        return "the name is empty; give a hub id or a folder"
    if os.path.isfile(name):
        return "it is a file; name the folder that holds the model, or a GGUF file"
    # hub ids are ``name`` or ``owner/name``
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
    return "there is no such folder" if is_path and not os.path.isdir(name) else ""


def _missing_in(folder: str, what: str) -> str:
    """Return which file a folder lacks that can't be loaded; empty if that is not why."""
    if not os.path.isdir(folder):
        return ""
    held = os.listdir(folder)
    if what == "tokenizer" and not any(map(_TOKENIZER_FILE.match, held)):
        return "there is no tokenizer in this folder; save it there by tokenizer.save_pretrained"
    if what != "tokenizer" and "config.json" not in held:
        return "there is no config.json in this folder; save it there by model.save_pretrained"
    return ""


def _where_to_look(name: str, options: Mapping[str, object]) -> dict[str, bool]:
    """Return what keeps libraries from asking a hub that does not answer, which takes minutes."""
    if os.path.isdir(name) or options.get("local_files_only") or hub_answers(name):
        return {}
    return {"local_files_only": True}
