"""A tiny random-weight model of every causal-LM family that the installed transformers has.

``families()`` lists them, ``build(name)`` makes one. The weights are scaled so that attention is
peaked and every position matters; with the usual initialisation a wrong rotation would hide below
the tolerance of a test.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.zoo.overrides import DEFAULTS, DROP, NOT_BUILT, OVERRIDES, VARIANTS
from tests.zoo.shrink import VOCAB, shrink
from tests.zoo.weights import randomize

__all__ = ["NOT_BUILT", "VOCAB", "build", "config", "families", "tokens", "variants"]

FIRST_TEXT_TOKEN = 4  # below it: padding, begin, end, and whatever marks images or sound


def families() -> list[str]:
    """Return every model type that transformers maps to a causal language model."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def variants() -> list[str]:
    """Return the names ``family:variant`` of other settings of the families that exist here."""
    return [name for name in VARIANTS if name.split(":")[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


def config(name: str, **overrides: Any) -> PretrainedConfig:
    """Return the tiny configuration of a family or variant.

    Args:
        name: a model type, or ``family:variant`` from :func:`variants`.
        overrides: configuration values that win over everything else; nested dicts are merged.
    """
    family = name.split(":")[0]
    default = CONFIG_MAPPING[family](**DEFAULTS.get(family, {}))
    values = shrink(default)
    for layer in (OVERRIDES.get(family, {}), VARIANTS.get(name, {}), overrides):
        values = _merged(values, layer)
    return type(default)(**values)


def build(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Return a tiny random model of a family on CPU, in float32 and eval mode.

    Raises:
        ValueError: the family is in ``NOT_BUILT``; the message gives the reason.
    """
    if name in NOT_BUILT:
        raise ValueError(f"no tiny {name}: {NOT_BUILT[name]}")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name, **overrides), dtype=torch.float32)
    return randomize(model, seed).eval()


def tokens(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Return ``[batch, length]`` random text tokens that every tiny model knows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TEXT_TOKEN, VOCAB, (batch, length), generator=generator)


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        if change is DROP:
            merged.pop(name, None)
        elif isinstance(change, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], change)
        else:
            merged[name] = change
    return merged
