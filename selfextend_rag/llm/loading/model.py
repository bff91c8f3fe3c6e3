"""Models with their weights, from a hub id, folder or GGUF file."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from selfextend_rag.errors import ModelLoadError, UnsupportedModelError
from selfextend_rag.llm.loading.bars import bars_if_watched
from selfextend_rag.llm.loading.gguf import in_transformers_form
from selfextend_rag.llm.loading.sources import SHARED_OPTIONS, loaded, takes_pictures_alone
from selfextend_rag.model import with_full_attention
from selfextend_rag.model.weights import check_weight_bits, round_weights

_OF_WEIGHTS = frozenset(
    ("attn_implementation", "device_map", "dtype", "experts_implementation", "quantization_config")
) | {"torch_dtype"}  # that a configuration has too, and from_pretrained has to see itself


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
    auto = AutoModelForImageTextToText if takes_pictures_alone(source, options) else None
    load = (auto or AutoModelForCausalLM).from_pretrained
    with bars_if_watched():
        model, info = loaded(source, "model", load, {**options, "output_loading_info": True})
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
    config, unused = loaded(source, "configuration", AutoConfig.from_pretrained, changes)
    kept = {name: options[name] for name in options.keys() & (_OF_WEIGHTS | SHARED_OPTIONS)}
    return {**unused, **kept, "config": with_full_attention(config)}
