"""Several answers as rows that share a prefix: their steps, and whether a model can take them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import FullLayer, Row, RowsCache, SelfExtendCache
from selfextend_rag.cache.rewind import start_recording
from selfextend_rag.cache.rows import rows_unsupported_reason
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.run import Cancelled, Run, is_cancelled
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.model import by_rows, switched
from selfextend_rag.model.verify import FAILURES, disagreement, failure
from selfextend_rag.positions import SelfExtend

if TYPE_CHECKING:
    from selfextend_rag.engine.engine import Engine

log = logging.getLogger(__name__)

_SHARED = 4  # of the few tokens that are tried; the rows continue them with 2 and 4
_SETTINGS = SelfExtend(group_size=2, neighbor_window=4)  # under which few tokens are extended

_reasons: WeakKeyDictionary[PreTrainedModel, dict[bool, str]] = WeakKeyDictionary()


def step(
    engine: Engine, rows: Sequence[Row], tokens: Sequence[int], prefix: CachedPrefix
) -> Tensor:
    """Run one token of each row and return the logits ``[B, V]``; the rows keep its keys.

    Raises:
        UnsupportedModelError: the model's attention can't be done by rows.
    """
    together = RowsCache(prefix.cache, rows)
    positions = [[position] for position in together.positions]
    with by_rows(engine.model):
        logits = engine.forward([[token] for token in tokens], together, positions)
    together.check_attended()
    for row in rows:
        row.length += 1
    return logits


@contextmanager
@torch.inference_mode()
def behind(prefix: CachedPrefix, row: Row) -> Iterator[None]:
    """Within the block, layers that keep all keys hold those of a row behind the prefix's."""
    shared = len(prefix)
    with ExitStack() as stack:
        for layer, own in zip(prefix.cache.layers, row.layers, strict=True):
            if isinstance(layer, FullLayer) and isinstance(own, FullLayer):
                layer.append(own)
                stack.callback(layer.crop, shared - layer.get_seq_length())
        yield


def unsupported_reason(engine: Engine, prefix: CachedPrefix, cancelled: Cancelled = None) -> str:
    """Return why the model can't answer several prompts at a time, in words; empty if it can.

    What can be seen is looked at first: layers with a recurrent state and chunked attention can't.
    Then two short rows run together and each alone, and the logits have to agree. That is done once
    for a model, plain and extended.

    Raises:
        GenerationCancelled: cancelled before it was known.
    """
    seen = rows_unsupported_reason(prefix.cache) or _configured(engine.model)
    if seen:
        return seen
    run = Run(cancelled=is_cancelled(cancelled))
    with engine.lock.hold(run.cancelled) as held:
        if not held:
            raise GenerationCancelled(0, 0)
        found = _reasons.setdefault(engine.model, {})
        extended = prefix.settings is not None
        if extended not in found:
            settings = _SETTINGS if extended else None
            found[extended] = _measured(engine, prefix.tokens, settings, run)
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


def _measured(engine: Engine, tokens: Sequence[int], settings: SelfExtend | None, run: Run) -> str:
    few = (tuple(tokens[:10]) * 10)[:10]
    try:
        with switched(engine.model, settings):
            alone, together = _both_ways(engine, few, settings, run)
    except FAILURES as error:
        return failure(error)
    return disagreement(alone, together, engine.model.dtype)


def _both_ways(
    engine: Engine, tokens: tuple[int, ...], settings: SelfExtend | None, run: Run
) -> tuple[Tensor, Tensor]:
    """Return the logits ``[2, V]`` after two rows that share their first tokens."""
    shared, tails = tokens[:_SHARED], (tokens[_SHARED : _SHARED + 2], tokens[_SHARED + 2 :])
    cache = SelfExtendCache(engine.model.config, capacity=len(tokens))
    engine.feed(shared, 0, cache, run)
    start_recording(cache)
    prefix = CachedPrefix(shared, settings, cache)
    rows, alone = [], []
    for tail in tails:
        with prefix.borrowed() as cache:
            engine.feed(tail[:-1], _SHARED, cache, run)
            rows.append(Row(cache, _SHARED, len(tail)))
            alone.append(engine.feed(tail[-1:], _SHARED + len(tail) - 1, cache, run))
    together = step(engine, rows, [tail[-1] for tail in tails], prefix)
    return torch.cat(alone).double().cpu(), together.double().cpu()
