"""The tokenizer that LlamaIndex counts with."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import llama_index.core
from llama_index.core.utils import set_global_tokenizer

_logger = logging.getLogger(__name__)


def register_tokenizer(tokenize: Callable[[str], list[int]]) -> None:
    """Have LlamaIndex count with this tokenizer, unless somebody has chosen one.

    LlamaIndex's own default, which it sets when something is counted first, is replaced; what a
    user or another model has set stays, and a message at level info says so.
    """
    present = llama_index.core.global_tokenizer
    if present is None or _is_the_default(present):
        set_global_tokenizer(tokenize)
    elif present != tokenize:
        _logger.info(
            "LlamaIndex continues to count with the tokenizer that is set, %r; to count with the "
            "model's own, set Settings.tokenizer = llm.tokenize, or call use_full_documents(llm)",
            present,
        )


def _is_the_default(tokenizer: object) -> bool:
    """Return whether this is the tiktoken encoding that LlamaIndex sets by itself."""
    return (
        isinstance(tokenizer, functools.partial)
        and tokenizer.keywords == {"allowed_special": "all"}
        and type(getattr(tokenizer.func, "__self__", None)).__module__.startswith("tiktoken")
    )
