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

from selfextend_rag.model.attention_fn import (
    OBSERVER,
    AttentionCall,
    previous_function,
    spelled,
    tell_observer,
)
from selfextend_rag.model.extension import is_extended
from selfextend_rag.model.inspection import sample_tokens
from selfextend_rag.model.probe import configs, foreign_tensors, set_implementation

_PREFIX = "observed_on_"
_objections: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
log = logging.getLogger(__name__)

Observer = Callable[[AttentionCall], None]


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every call of the attention function within the block.

    It is told before the call, in the thread that runs the model, and must not change a tensor. The
    model may be plain or extended, and must stay what it is within the block. A plain one goes on
    with the very function and masks it had; that is checked on two short forwards, once. A model
    that fails the check, or calls no registered attention function, runs as ever and nothing is
    told; a log says so.
    """
    if is_extended(model):
        with _told(model, observer):
            yield
    elif _objection(model):
        yield
    else:
        with _told(model, observer), _observed_functions(model):
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


@contextmanager
def _observed_functions(model: nn.Module) -> Iterator[None]:
    before = [(config, config._attn_implementation) for config in configs(model)]
    for config, name in before:
        set_implementation(config, _observed_name(name or "eager"))
    try:
        yield
    finally:
        for config, name in before:
            set_implementation(config, name)


def _objection(model: PreTrainedModel) -> str:
    """Return why a plain model can't be observed; measured once."""
    if model not in _objections:
        reason = _objections[model] = _measured_objection(model)
        if reason:
            log.warning("the attention of %s can't be observed: %s", type(model).__name__, reason)
    return _objections[model]


@torch.inference_mode()
def _measured_objection(model: PreTrainedModel) -> str:
    told: list[str] = []
    ids = sample_tokens(model)
    try:
        stock = model(input_ids=ids, use_cache=False).logits
        with (
            _told(model, lambda call: told.append(foreign_tensors(call.arguments))),
            _observed_functions(model),
        ):
            seen = model(input_ids=ids, use_cache=False).logits
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        return f"it does not run in a check: {type(error).__name__}: {error}"
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
