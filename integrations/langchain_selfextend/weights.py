"""Models by name: instances of one model share one set of weights while any of them lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

from selfextend_rag import LongContextLLM

BUNDLED = "bundled"
"""The name of the model that comes with the package; write ``./bundled`` for a folder."""

_Key = tuple[str, Mapping[str, Any]]

_lock = threading.Lock()
# Options are compared, not hashed: they may hold dictionaries, and objects of others.
_live: list[tuple[_Key, Mapping[str, Any], weakref.ref[LongContextLLM]]] = []


def shared_llm(
    source: str, loading: Mapping[str, Any], context: Mapping[str, Any]
) -> LongContextLLM:
    """Return a model by name, whose weights are loaded unless they are there.

    Args:
        source: hub id, folder, or ``"bundled"``.
        loading: options of ``LongContextLLM.from_pretrained`` that decide about the weights.
        context: options of `LongContextLLM`; with other ones, weights are shared all the same.

    Raises:
        ModelLoadError: there is no such model.
    """
    wanted = (source, dict(loading))
    with _lock:  # also while loading, or two threads would load the same weights
        _live[:] = [entry for entry in _live if entry[2]() is not None]
        same = [(options, llm) for key, options, ref in _live if key == wanted and (llm := ref())]
        for options, llm in same:
            if options == context:
                return llm
        if same:
            llm = LongContextLLM(same[0][1].model, same[0][1].tokenizer, **context)
        elif source == BUNDLED:
            llm = LongContextLLM.bundled(**loading, **context)
        else:
            llm = LongContextLLM.from_pretrained(source, **loading, **context)
        _live.append((wanted, dict(context), weakref.ref(llm)))
        return llm
