"""The store of earlier prompts that a `LongContextLLM` reuses."""

from __future__ import annotations

import os
from pathlib import Path

from selfextend_rag.cache.identity import model_state, token_fingerprint
from selfextend_rag.cache.spill import SpillFolder
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine import Engine
from selfextend_rag.text.prompts import PromptBuilder


def prefix_store(
    engine: Engine,
    prompts: PromptBuilder,
    max_bytes: int,
    folder: str | os.PathLike[str] | None,
    folder_bytes: int,
) -> PrefixStore | None:
    """Return where prompts are kept for those to come, or None if nothing is to be kept.

    Raises:
        ValueError: a number of bytes is out of range, or a folder is given and no memory.
    """
    if max_bytes == 0 and folder is not None:
        raise ValueError("prefix_cache_dir needs a prefix_cache_bytes above 0, got 0")
    spill = None
    if folder is not None:
        spill = SpillFolder(
            Path(folder),
            folder_bytes,
            lambda: token_fingerprint(engine.model, prompts.codec.tokenizer, engine.kv_bits),
        )
    if not max_bytes:
        return None
    return PrefixStore(max_bytes, spill, state=lambda: model_state(engine.model))
