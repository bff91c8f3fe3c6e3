"""What kept keys belong to: model, tokenizer and prompts, in named parts that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from selfextend_rag.cache.identity import digest, model_fingerprint
from selfextend_rag.documents import Document
from selfextend_rag.engine import Engine
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.kv_bits import in_words
from selfextend_rag.text.prompts import PromptBuilder

_tokenizers: WeakKeyDictionary[Any, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def token_fingerprint(engine: Engine, prompts: PromptBuilder) -> dict[str, str]:
    """Return what cached keys of token ids belong to, whatever prompt they come from."""
    return {
        **model_fingerprint(engine.model),
        "tokenizer": _tokenizer(prompts.codec.tokenizer),
        "keys and values": f"in {in_words(engine.kv_bits)}",
    }


def reading_fingerprint(
    engine: Engine, prompts: PromptBuilder, pretraining_window: int
) -> dict[str, str]:
    """Return what a reading belongs to, but for its documents, group size and neighbor window."""
    return {
        **token_fingerprint(engine, prompts),
        "prompt form": digest(json.dumps(prompts.identity(), default=str, sort_keys=True)),
        "pretraining_window": str(pretraining_window),
    }


def prompt_state(prompts: PromptBuilder) -> tuple[Any, ...]:
    """Return what changes when a tokenizer is given other tokens or another chat template."""
    tokenizer = prompts.codec.tokenizer
    template = repr(tokenizer.chat_template) if prompts.chat else ""
    return len(tokenizer), repr(tokenizer.special_tokens_map), template


def check_prompts(prompts: PromptBuilder, state: tuple[Any, ...]) -> None:
    """Refuse to go on from tokens that were made in this state, if it is another one now.

    Raises:
        CacheMismatchError: it is.
    """
    if prompt_state(prompts) != state:
        raise CacheMismatchError(
            "the tokenizer, its special tokens or its chat template have changed since these "
            "documents were read; read them again, or put it back"
        )


def documents_digest(documents: Sequence[Document]) -> str:
    """Return what tells documents from others: their ids, titles and texts, and their order."""
    return digest(json.dumps([(d.id, d.title, d.text) for d in documents]))


def _tokenizer(tokenizer: Any) -> str:
    """Digest all that decides how text becomes tokens; the long part only when it may differ."""
    state = (len(tokenizer), tokenizer.chat_template, repr(tokenizer.special_tokens_map))
    if tokenizer in _tokenizers and _tokenizers[tokenizer][0] == state:
        return _tokenizers[tokenizer][1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = tokenizer.get_vocab()
    else:
        content = json.loads(backend.to_str())
        for option in ("truncation", "padding"):  # of the last call, not of the tokenizer
            content.pop(option, None)
    made = digest(json.dumps([content, type(tokenizer).__name__, *state], sort_keys=True))
    _tokenizers[tokenizer] = state, made
    return made
