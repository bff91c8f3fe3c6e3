"""The options of a `SelfExtendLLM`: which belong to the model, and which to each answer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from selfextend_rag import GenerationSettings, LongContextLLM, shared_llm

CONTEXT = frozenset(inspect.signature(LongContextLLM.__init__).parameters) - {
    "self",
    "model",
    "tokenizer",
}
GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
LOADING: dict[str, Any] = {
    "dtype": "auto",
    "device_map": None,
    "full_attention": False,
    "model_options": {},
}
"""What decides about the weights, and its defaults."""
_ALIASES = {"max_tokens": "max_new_tokens"}
_PER_CALL = frozenset((*GENERATION, *_ALIASES, "max_new_tokens", "stop", "stop_token_ids"))
_OF_EVERY_CALL = frozenset(("json_schema", "progress", "cancelled"))
_OF_CONVERSATIONS = frozenset(("tools", "tool_choice", "parallel_tool_calls"))
_OF_READINGS = frozenset(("evidence",))


def call_options(
    defaults: Mapping[str, Any], call: Mapping[str, Any], *, of_reading: bool = False
) -> dict[str, Any]:
    """Return what to hand to the core: a call's own options before the defaults.

    Options that are None are left to the core.

    Args:
        defaults: the options of the instance.
        call: those of the call.
        of_reading: the call is a question about documents that were read.

    Raises:
        TypeError: an option is not known.
        ValueError: one is out of range.
    """
    others = _OF_EVERY_CALL | (_OF_READINGS if of_reading else _OF_CONVERSATIONS)
    known = _PER_CALL | others
    if unknown := sorted(call.keys() - known):
        raise TypeError(
            f"unknown option {', '.join(unknown)}; a call takes {', '.join(sorted(known))}"
        )
    merged: dict[str, Any] = {}
    for name, value in [*defaults.items(), *call.items()]:
        if value is not None:
            merged[_ALIASES.get(name, name)] = value
    GenerationSettings(**{k: v for k, v in merged.items() if k not in others})
    return merged


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
