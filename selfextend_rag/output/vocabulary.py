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
        SchemaError: the tokenizer's tokens have no bytes that can be told, or there is no end.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SchemaError(
            "the grammar of an answer needs the bytes of each token, and "
            f"{type(tokenizer).__name__} does not tell them; load a fast tokenizer, one "
            "with a tokenizer.json"
        )
    known = 1 + max(len(tokenizer) - 1, max(tokenizer.added_tokens_decoder, default=0))
    # An end beyond the tokenizer's own tokens is let in by `GrammarConstraint`.
    within = [end for end in ends if end < known]
    if not within:
        raise SchemaError(
            "an answer held to a grammar needs a token of the vocabulary that ends it, and neither "
            "model nor tokenizer names one; pass stop_token_ids"
        )
    try:
        return from_tokenizer(tokenizer, eos_token=within)
    except ValueError as error:
        raise SchemaError(
            f"the grammar of an answer needs the bytes of each token, and those of this tokenizer "
            f"can't be told ({error}); use a model with a byte-level or byte-fallback vocabulary"
        ) from error
