"""The bytes of every token of a vocabulary, as the grammar library wants them."""

from __future__ import annotations

from typing import Any

from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer

from selfextend_rag.errors import SchemaError


def vocabulary_of(tokenizer: Any, ends: tuple[int, ...]) -> LLTokenizer:
    """Return the vocabulary of a tokenizer; takes up to a second for a large one.

    Args:
        tokenizer: a fast tokenizer of transformers, byte-level or with byte fallback.
        ends: tokens that end an answer.

    Raises:
        SchemaError: the tokenizer's tokens have no bytes that can be told.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SchemaError(
            "the grammar of an answer needs the bytes of each token, and "
            f"{type(tokenizer).__name__} does not tell them; load a fast tokenizer, one "
            "with a tokenizer.json"
        )
    added = max(tokenizer.added_tokens_decoder, default=0)
    width = max(len(tokenizer), added + 1, *(end + 1 for end in ends))
    try:
        return from_tokenizer(tokenizer, n_vocab=width, eos_token=list(ends))
    except ValueError as error:
        raise SchemaError(
            f"the grammar of an answer needs the bytes of each token, and those of this tokenizer "
            f"can't be told ({error}); use a model with a byte-level or byte-fallback vocabulary"
        ) from error
