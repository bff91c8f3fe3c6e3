"""From what a `SelfExtendLLM` is constructed with to the core's model."""

from __future__ import annotations

import os
from typing import Any

from selfextend_rag import LongContextLLM, shared_llm

LOADING: dict[str, Any] = {"dtype": "auto", "device_map": None, "model_options": {}}
"""What decides about the weights, and its defaults."""


def opened(
    model: Any, tokenizer: Any, loading: dict[str, Any], context: dict[str, Any]
) -> LongContextLLM:
    """Return the core's model for a name, a live model or a `LongContextLLM`.

    Raises:
        ModelLoadError: there is no such model.
        TypeError: options do not go with what was given; the message names them.
    """
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise TypeError("tokenizer goes with a live model; a folder or hub id has its own")
        return shared_llm(model, loading, context)
    taken = [name for name, value in loading.items() if value != LOADING[name]]
    if isinstance(model, LongContextLLM):
        taken += [*context, *([] if tokenizer is None else ["tokenizer"])]
    if taken:
        raise TypeError(
            f"{', '.join(sorted(taken))} can't be changed on a model that is live; set it where "
            "the model is made, or name the model instead"
        )
    if isinstance(model, LongContextLLM):
        return model
    if tokenizer is None:
        raise TypeError("a live model needs its tokenizer; give tokenizer= too")
    return LongContextLLM(model, tokenizer, **context)


def name_of(llm: LongContextLLM) -> str:
    """Return the name or path of a model, or its class when it has none."""
    return getattr(llm.model.config, "name_or_path", "") or type(llm.model).__name__
