"""Models and tokenizers from a hub id or a folder, with errors of one kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from selfextend_rag.errors import ModelLoadError, in_short
from selfextend_rag.llm.hub import hub_is_reachable, hub_name
from selfextend_rag.model import with_full_attention

_LOADING_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    KeyError,
    SafetensorError,
    AssertionError,  # torch, asked for a device that it was not built for
)
_SHARED_OPTIONS = frozenset(
    ("cache_dir", "code_revision", "force_download", "local_files_only", "revision", "subfolder")
) | {"token", "trust_remote_code"}

_TOKENIZER_FILE = re.compile(r"token|vocab|merges|spiece|tekken|.*\.(model|tiktoken)$")
_T = TypeVar("_T")


def load_model(
    source: str | os.PathLike[str], *, full_attention: bool = False, **options: Any
) -> PreTrainedModel:
    """Return a causal language model with its weights, in evaluation mode.

    Args:
        source: hub id or folder.
        full_attention: load it without its sliding windows, see `with_full_attention`.
        options: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ModelLoadError: it can't be found or read, or weights of it are missing.
        UnsupportedModelError: its windows can't be switched off.
    """
    loader: Any = AutoModelForCausalLM
    if full_attention:
        config = options.get("config") or load_config(source, **options)
        options = {**options, "config": with_full_attention(config)}
    model, info = _loaded(
        source,
        "model",
        lambda name, **more: loader.from_pretrained(
            name, output_loading_info=True, **more, **options
        ),
        options,
    )
    missing = sorted(info["missing_keys"]) or sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise ModelLoadError(
            f"the model {os.fspath(source)} lacks {len(missing)} of its weights, such as "
            f"{missing[0]}; is it a causal language model, and whole?"
        )
    return model.eval()


def load_tokenizer(source: str | os.PathLike[str], **options: Any) -> Any:
    """Return the tokenizer of a model; of the options, those that concern all files are used.

    Raises:
        ModelLoadError: it can't be found or read.
    """
    return _loaded(
        source,
        "tokenizer",
        lambda name, **more: AutoTokenizer.from_pretrained(name, **more, **_shared(options)),
        options,
    )


def load_config(
    source: str | os.PathLike[str], *, full_attention: bool = False, **options: Any
) -> PreTrainedConfig:
    """Return the configuration of a model; of the options, those that concern all files are used.

    Args:
        source: hub id or folder.
        full_attention: without sliding windows, see `with_full_attention`.
        options: as for `load_model`.

    Raises:
        ModelLoadError: it can't be found or read.
        UnsupportedModelError: its windows can't be switched off.
    """
    config = _loaded(
        source,
        "configuration",
        lambda name, **more: AutoConfig.from_pretrained(name, **more, **_shared(options)),
        options,
    )
    return with_full_attention(config) if full_attention else config


def empty_model(source: str | os.PathLike[str], config: PreTrainedConfig, dtype: Any) -> Any:
    """Return a model without weights, on torch's meta device: names and shapes alone.

    Args:
        source: what to call it in an error.
        config: its configuration.
        dtype: its precision; None for what the configuration says.

    Raises:
        ModelLoadError: no causal language model can be built from the configuration.
    """
    chosen = dtype or getattr(config, "dtype", None) or torch.float32

    def build(_: str, **more: Any) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=chosen).eval()

    return _loaded(source, "model", build, {"local_files_only": True})


def stated_max_new_tokens(source: str | os.PathLike[str], **options: Any) -> int | None:
    """Return the length of answers that a model's generation configuration names, if it does."""
    name = os.fspath(source)
    where: dict[str, Any] = {**_where_to_look(name, options), **_shared(options)}
    try:
        config = GenerationConfig.from_pretrained(name, **where)
    except OSError:  # many models have none
        return None
    return config.max_new_tokens


def _shared(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _SHARED_OPTIONS}


def _loaded(
    source: str | os.PathLike[str],
    what: str,
    load: Callable[..., _T],
    options: Mapping[str, Any],
) -> _T:
    name = os.fspath(source)
    problem = _problem_with(name)
    if problem:
        raise ModelLoadError(f"can't load the {what} {name}: {problem}")
    where = _where_to_look(name, options)
    try:
        return load(name, **where)
    except _LOADING_ERRORS as error:
        reason = _missing_in(name, what) or in_short(error)
        if where:
            reason = (
                f"there is no folder of that name, {hub_name()} can't be reached, and what was "
                "downloaded before does not hold it"
            )
        raise ModelLoadError(f"can't load the {what} {name}: {reason}") from error


def _problem_with(name: str) -> str:
    """Return what can be seen to be wrong with a name; empty if nothing."""
    if not name.strip():
        return "the name is empty; give a hub id or a folder"
    if os.path.isfile(name):
        return "it is a file; name the folder that holds the model"
    if _is_path(name) and not os.path.isdir(name):
        return "there is no such folder"
    return ""


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


def _where_to_look(name: str, options: Mapping[str, Any]) -> dict[str, bool]:
    """Return what keeps libraries from asking a hub that does not answer, which takes minutes."""
    if os.path.isdir(name) or options.get("local_files_only") or hub_is_reachable():
        return {}
    return {"local_files_only": True}


def _is_path(name: str) -> bool:
    """Return whether a name can only be a folder's; hub ids are ``name`` or ``owner/name``."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
