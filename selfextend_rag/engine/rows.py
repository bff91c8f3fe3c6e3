"""Whether a model can answer several questions at a time: measured on the model itself, once."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import Row, SelfExtendCache
from selfextend_rag.cache.rows import rows_objection
from selfextend_rag.engine.batch import step
from selfextend_rag.engine.engine import Cancelled, Engine, as_function
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.model import switched, turn_of
from selfextend_rag.model.agreement import FAILURES, disagreement, failure
from selfextend_rag.positions import SelfExtend

log = logging.getLogger(__name__)

_SHARED = 4  # of the few tokens that are tried; the rows go on from them with 2 and 4
_EXTENSION = SelfExtend(group_size=2, neighbor_window=4)  # under which few tokens are extended

_objections: WeakKeyDictionary[PreTrainedModel, dict[bool, str]] = WeakKeyDictionary()


def objection(engine: Engine, prefix: CachedPrefix, cancelled: Cancelled = None) -> str:
    """Return why the model can't answer several prompts at a time, in words; empty if it can.

    What can be seen is looked at first: layers with a recurrent state and chunked attention can't.
    Then two short rows run together and each alone, and the logits have to agree. That is done once
    for a model, plain and extended.
    """
    seen = rows_objection(prefix.cache) or _configured(engine.model)
    if seen:
        return seen
    with turn_of(engine.model).hold(as_function(cancelled)) as held:
        if not held:
            return ""  # whoever goes on will see for himself that it is cancelled
        found = _objections.setdefault(engine.model, {})
        extended = prefix.extension is not None
        if extended not in found:
            found[extended] = _measured(engine, prefix.tokens, _EXTENSION if extended else None)
            if found[extended]:
                name = type(engine.model).__name__
                log.info("%s answers one question at a time: %s", name, found[extended])
        return found[extended]


def _configured(model: PreTrainedModel) -> str:
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model takes no position_ids"
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    others = kinds - {"full_attention", "sliding_attention"}
    if getattr(config, "attention_chunk_size", None) is not None:
        others.add("chunked_attention")
    return f"the model has layers of {', '.join(sorted(others))}" if others else ""


def _measured(engine: Engine, tokens: Sequence[int], extension: SelfExtend | None) -> str:
    few = (tuple(tokens[:10]) * 10)[:10]
    try:
        with switched(engine.model, extension):
            alone, together = _both_ways(engine, few, extension)
    except FAILURES as error:
        return failure(error)
    return disagreement(alone, together, engine.model.dtype)


def _both_ways(
    engine: Engine, tokens: tuple[int, ...], extension: SelfExtend | None
) -> tuple[Tensor, Tensor]:
    """Return the logits ``[2, V]`` after two rows that share their first tokens."""
    shared, tails = tokens[:_SHARED], (tokens[_SHARED : _SHARED + 2], tokens[_SHARED + 2 :])
    cache = SelfExtendCache(engine.model.config, capacity=len(tokens))
    engine.feed(shared, 0, cache, None, lambda: False)
    cache.activate_past_recording()
    prefix = CachedPrefix(shared, extension, cache)
    rows, alone = [], []
    for tail in tails:
        with prefix.lent() as lent:
            engine.forward([tail[:-1]], lent)
            rows.append(Row(lent, _SHARED, len(tail)))
            alone.append(engine.forward([tail[-1:]], lent))
    together = step(engine, rows, [tail[-1] for tail in tails], prefix)
    return torch.cat(alone).double().cpu(), together.double().cpu()
