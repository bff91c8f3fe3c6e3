"""The options of a `SelfExtendLLM`: which belong to the model, and which to each answer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from selfextend_rag import GenerationSettings, LongContextLLM

CONTEXT = frozenset(inspect.signature(LongContextLLM.__init__).parameters) - {
    "self",
    "model",
    "tokenizer",
}
GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
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
