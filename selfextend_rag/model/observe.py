"""Watch the attention of a model, plain or extended, without changing what it computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfextend_rag.model.attention_fn import (
    implementations,
    plain_name,
    previous_mask,
    registered,
    run_previous,
)
from selfextend_rag.model.extension import attached, is_extended, never, stock_logits
from selfextend_rag.model.hooks import Asked, AttentionCall, Observer, binding_of
from selfextend_rag.model.probe import foreign_tensors
from selfextend_rag.model.verify import FAILURES, Runner, failure, whole_logits

_PREFIX = "observed_on_"
_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_logged: WeakSet[nn.Module] = WeakSet()
log = logging.getLogger(__name__)


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Report every call of the attention function within the block to ``observer``.

    It is called before the function, in the thread that runs the model, and must not change a
    tensor. The model may be plain or extended, and must stay what it is within the block. A plain
    one keeps the very function and masks it had; that is checked by a short forward or two, once. A
    model that fails the check, or calls no registered attention function, runs as ever and nothing
    is reported; a log says so.
    """
    if not is_extended(model) and _unobservable_reason(model):
        yield
    else:
        with attached(model, _observed_name, observer):
            yield


@contextmanager
def quick_steps(model: PreTrainedModel) -> Iterator[None]:
    """Have a plain model on a CPU take single tokens quicker within the block.

    Its logits are those of the stock model but for the order of sums: see `plain_name`. A model
    that can't be observed, and one that is extended, stay as they are.
    """
    if model.device.type != "cpu" or is_extended(model) or _renaming_reason(model):
        yield
    else:
        with implementations(model, plain_name):
            yield


def _unobservable_reason(model: PreTrainedModel) -> str:
    """Return why a plain model can't be observed, and log it once."""
    reason = _renaming_reason(model)
    if reason and model not in _logged:
        _logged.add(model)
        log.warning("the attention of %s can't be observed: %s", type(model).__name__, reason)
    return reason


def _renaming_reason(model: PreTrainedModel) -> str:
    """Return why the attention of a plain model can't have another name; measured once."""
    if model not in _reasons:
        _reasons[model] = _measured_reason(model)
    return _reasons[model]


@torch.inference_mode()
def _measured_reason(model: PreTrainedModel) -> str:
    calls: list[AttentionCall] = []
    try:
        stock = stock_logits(model)
        with attached(model, _observed_name, calls.append):
            logits = whole_logits(Runner(model, never))
    except FAILURES as error:
        return failure(error)
    seen = [foreign_tensors(call.arguments) for call in calls]
    if not seen:
        return "no layer calls the attention function that is set in its configuration"
    if any(seen):  # some models hand over more when they do not know the name
        return f"its layers choose keys in {max(seen)}"
    return "" if torch.equal(stock, logits) else "its logits depend on the name of its attention"


def _observed_mask(*args: Any, previous: str, **kwargs: Any) -> Tensor | None:
    return previous_mask(previous)(*args, **kwargs)


def _observed_attention(asked: Asked, previous: str) -> tuple[Tensor, Tensor | None]:
    return run_previous(binding_of(asked.module).call(asked), previous)


_observed_name = partial(registered, _PREFIX, attention=_observed_attention, mask=_observed_mask)
