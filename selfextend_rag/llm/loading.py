"""Models and tokenizers from a hub id or a folder, with errors of one kind."""

from __future__ import annotations

import os
from collections.abc import Callable
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

from selfextend_rag.errors import ModelLoadError

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

_T = TypeVar("_T")


def load_model(source: str | os.PathLike[str], **options: Any) -> PreTrainedModel:
    """Return a causal language model with its weights, in evaluation mode.

    Args:
        source: hub id or folder.
        options: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ModelLoadError: it can't be found or read, or weights of it are missing.
    """
    loader: Any = AutoModelForCausalLM
    model, info = _loaded(
        source,
        "model",
        lambda name: loader.from_pretrained(name, output_loading_info=True, **options),
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
        source, "tokenizer", lambda name: AutoTokenizer.from_pretrained(name, **_shared(options))
    )


def load_config(source: str | os.PathLike[str], **options: Any) -> PreTrainedConfig:
    """Return the configuration of a model; of the options, those that concern all files are used.

    Raises:
        ModelLoadError: it can't be found or read.
    """
    return _loaded(
        source, "configuration", lambda name: AutoConfig.from_pretrained(name, **_shared(options))
    )


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

    def build(_: str) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=chosen).eval()

    return _loaded(source, "model", build)


def stated_max_new_tokens(source: str | os.PathLike[str], **options: Any) -> int | None:
    """Return the length of answers that a model's generation configuration names, if it does."""
    try:
        config = GenerationConfig.from_pretrained(os.fspath(source), **_shared(options))
    except OSError:  # many models have none
        return None
    return config.max_new_tokens


def _shared(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _SHARED_OPTIONS}


def _loaded(source: str | os.PathLike[str], what: str, load: Callable[[str], _T]) -> _T:
    name = os.fspath(source)
    if _is_path(name) and not os.path.isdir(name):
        raise ModelLoadError(f"can't load the {what} {name}: there is no such folder")
    try:
        return load(name)
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(f"can't load the {what} {name}: {reason}") from error


def _is_path(name: str) -> bool:
    """Return whether a name can only be a folder's; hub ids are ``name`` or ``owner/name``."""
    return os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
