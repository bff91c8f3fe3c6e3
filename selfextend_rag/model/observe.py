"""Watch the attention of a model, plain or extended, without changing what it computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.model.agreement import FAILURES, failure
from selfextend_rag.model.attention_fn import (
    OBSERVER,
    AttentionCall,
    previous_function,
    spelled,
    tell_observer,
)
from selfextend_rag.model.extension import is_extended, stock_logits
from selfextend_rag.model.inspection import sample_tokens
from selfextend_rag.model.probe import attention_implementations, configs, foreign_tensors
from selfextend_rag.model.verify import TOKENS, Runner, whole_logits

_PREFIX = "observed_on_"
_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
log = logging.getLogger(__name__)

Observer = Callable[[AttentionCall], None]


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every call of the attention function within the block.

    It is told before the call, in the thread that runs the model, and must not change a tensor. The
    model may be plain or extended, and must stay what it is within the block. A plain one
    keeps the very function and masks it had; that is checked by a short forward or two, once. A
    model that fails the check, or calls no registered attention function, runs as ever and nothing
    is reported; a log says so.
    """
    if is_extended(model):
        with _told(model, observer):
            yield
    elif _unobservable(model):
        yield
    else:
        with (
            _told(model, observer),
            attention_implementations(configs(model), _observed_name),
        ):
            yield


@contextmanager
def _told(model: nn.Module, observer: Observer) -> Iterator[None]:
    for module in model.modules():
        module.__dict__[OBSERVER] = observer
    try:
        yield
    finally:
        for module in model.modules():
            module.__dict__.pop(OBSERVER, None)


def _unobservable(model: PreTrainedModel) -> str:
    """Return why a plain model can't be observed; measured once."""
    if model not in _reasons:
        reason = _reasons[model] = _measured_reason(model)
        if reason:
            log.warning("the attention of %s can't be observed: %s", type(model).__name__, reason)
    return _reasons[model]


@torch.inference_mode()
def _measured_reason(model: PreTrainedModel) -> str:
    told: list[str] = []
    try:
        stock = stock_logits(model)
        with (
            _told(model, lambda call: told.append(foreign_tensors(call.arguments))),
            attention_implementations(configs(model), _observed_name),
        ):
            seen = whole_logits(Runner(model), sample_tokens(model, TOKENS))
    except FAILURES as error:
        return failure(error)
    if not told:
        return "no layer calls the attention function that is set in its configuration"
    if any(told):  # some models hand over more when they do not know the name
        return f"its layers choose keys in {max(told)}"
    return "" if torch.equal(stock, seen) else "its logits depend on the name of its attention"


def _observed_name(previous: str) -> str:
    """Return the registered name that observes ``previous``, registering it at the first call."""
    name = _PREFIX + spelled(previous)
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_observed_attention, previous=previous))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[previous])
    return name


def _observed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    previous: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    tell_observer(module, query, key, attention_mask, None, kwargs)
    function = previous_function(module, previous)
    return function(module, query, key, value, attention_mask, **kwargs)
