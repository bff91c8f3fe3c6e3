"""Models by name: who asks for the same weights shares them while any of them lives."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from selfextend_rag.llm.llm import LongContextLLM

BUNDLED = "bundled"
"""The name of the model that comes with the package; write ``./bundled`` for a folder."""

_Key = tuple[str, Mapping[str, Any]]

_lock = threading.Lock()
# Options are compared, not hashed: they may hold dictionaries, and objects of others.
_live: list[tuple[_Key, Mapping[str, Any], weakref.ref[LongContextLLM]]] = []


def shared_llm(
    source: str | os.PathLike[str],
    loading: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> LongContextLLM:
    """Return a model by name, whose weights are loaded unless they are there.

    Args:
        source: hub id, folder, or ``"bundled"``.
        loading: options of ``LongContextLLM.from_pretrained`` that decide about the weights.
        context: options of `LongContextLLM`; with other ones, weights are shared all the same.

    Raises:
        ModelLoadError: there is no such model.
    """
    name = os.fspath(source)
    wanted, options = (name, dict(loading or {})), dict(context or {})
    with _lock:  # also while loading, or two threads would load the same weights
        _live[:] = [entry for entry in _live if entry[2]() is not None]
        same = [(had, llm) for key, had, ref in _live if key == wanted and (llm := ref())]
        for had, llm in same:
            if had == options:
                return llm
        if same:
            llm = LongContextLLM(same[0][1].model, same[0][1].tokenizer, **options)
        elif name == BUNDLED:
            llm = LongContextLLM.bundled(**wanted[1], **options)
        else:
            llm = LongContextLLM.from_pretrained(name, **wanted[1], **options)
        _live.append((wanted, options, weakref.ref(llm)))
        return llm
