"""Configurations changed before a model is built with them.

What `support` measures does not depend on how wide the model is, so a configuration alone can be
judged by a narrow copy: same layers, heads and rotary embedding, fewer of everything else.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from selfextend_rag.errors import UnsupportedModelError, in_short
from selfextend_rag.model.verify import FAILURES

_WIDTH = 64
_VOCABULARY = 512
_NARROW = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("dense_intermediate_size", "ffn_hidden_size", "hidden_size_per_layer_input", "n_inner"),
)
_FEW = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OTHER_WINDOWS = ("attention_chunk_size", "attention_window_size", "sliding_window_pattern")
_MOST_PARAMETERS = 200_000_000


def tiny_copy(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a narrow random model, in float32 on the CPU, for ``config``; no weights are read.

    Raises:
        UnsupportedModelError: no such model can be built from the configuration alone.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    _narrow(text)
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(text).parameters())
        if size > _MOST_PARAMETERS:
            raise ValueError(f"its narrow copy would still have {size:,} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(text, dtype=torch.float32)
            _randomise(model)
    except FAILURES as error:
        raise UnsupportedModelError(
            f"{type(text).__name__} can't be judged by its configuration alone "
            f"({in_short(error)}); load the model and call support(model)"
        ) from error
    model.train(mode=False)
    return model


def _narrow(config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    if hasattr(config, "head_dim") and heads:
        config.head_dim = config.head_dim or config.hidden_size // heads
        config.hidden_size = _WIDTH
    chosen = max(int(getattr(config, name, None) or 1) for name in ("num_experts_per_tok", "moe_k"))
    most = {**dict.fromkeys(_NARROW, _WIDTH), **dict.fromkeys(_FEW, max(4, chosen))}
    for name, limit in most.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(limit, getattr(config, name)))
    config.vocab_size = min(_VOCABULARY, config.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 0)


def _randomise(model: PreTrainedModel) -> None:
    """Make vectors (norms, biases) uneven: even ones hide a norm that follows the rotation."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)


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
