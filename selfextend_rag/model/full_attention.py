"""Sliding windows switched off in a configuration, before a model is loaded with it."""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig

from selfextend_rag.errors import UnsupportedModelError

_OTHER_WINDOWS = ("attention_chunk_size", "attention_window_size", "sliding_window_pattern")


def with_full_attention(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of ``config`` whose layers attend to all tokens, to load a model with.

    For models whose every layer has one sliding window, such as Mistral 7B v0.1, which the authors
    of SelfExtend ran without it. No distance beyond the window was seen in training, so the window
    becomes the copy's ``max_position_embeddings``. A model without sliding windows stays as it is.

    Raises:
        UnsupportedModelError: the model was built around its windows: only some layers have one, or
            it is of another kind than a sliding window.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    others = [name for name in _OTHER_WINDOWS if getattr(text, name, None)]
    window = getattr(text, "sliding_window", None)
    if len(kinds) > 1:
        raise _refused(config, f"its layers are of several kinds ({', '.join(sorted(kinds))})")
    if others or kinds - {"full_attention", "sliding_attention"}:
        raise _refused(config, f"it has other windows ({', '.join([*others, *kinds])})")
    if not window or "full_attention" in kinds or not getattr(text, "use_sliding_window", True):
        return config
    trained = getattr(text, "max_position_embeddings", None)
    if trained is None or window < trained:
        if (getattr(text, "rope_parameters", None) or {}).get("rope_type") != "default":
            raise _refused(config, "its rotary frequencies were scaled to a longer window")
        text.max_position_embeddings = window
    if kinds:  # they decide, and some models' code reads the window all the same
        text.layer_types = ["full_attention"] * len(text.layer_types)
    else:
        text.sliding_window = None
    return config


def _refused(config: PreTrainedConfig, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"full_attention=True can't switch off the windows of a {config.model_type} model: "
        f"{reason}; load it without full_attention"
    )
