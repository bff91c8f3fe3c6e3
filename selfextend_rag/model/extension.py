"""Extend a transformers model in place, give it back as it was, say what can be extended.

Nothing here knows a model by name. One instance is changed: two kinds of pre-hooks, an attribute on
each attention module, and the attention implementation of its configuration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfextend_rag.attention import Impl
from selfextend_rag.cache.identity import rotary_state
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.attention_fn import BINDING, Binding, implementation_name
from selfextend_rag.model.hooks import ConsecutivePositions, RawPositions
from selfextend_rag.model.inspection import Inspection, inspect_model, recalled, sample_tokens
from selfextend_rag.model.known import recall, remember
from selfextend_rag.model.lock import lock_of
from selfextend_rag.model.probe import attention_implementations, configs, set_implementation
from selfextend_rag.model.report import SupportReport
from selfextend_rag.model.tiny import sketch
from selfextend_rag.model.verify import (
    TOKENS,
    Cancelled,
    Runner,
    evaluating,
    measured_continuation,
    never,
    whole_logits,
)
from selfextend_rag.positions import SelfExtend

_STATE = "_self_extend_previous"
_lock = threading.RLock()
# What was found, and the rotary frequencies that it was found with: a model may be given others.
_inspections: WeakKeyDictionary[nn.Module, tuple[Any, Inspection]] = WeakKeyDictionary()
_continuations: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_stock: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()  # logits of the sample tokens


def extend(model: PreTrainedModel, settings: SelfExtend, *, impl: Impl = "auto") -> None:
    """Switch ``model``, in place, to SelfExtend attention; again, to change its settings.

    Keys reach any cache un-rotated from now on, so a cache filled before, or under other settings,
    does not belong to the model any more. The weights are not touched. While another thread runs
    the model by an `Engine`, this waits for its end.

    Args:
        model: any decoder of transformers that `support` accepts; it may be dispatched over
            devices. It should be in evaluation mode.
        settings: group size and neighbor window.
        impl: attention implementation, see `selfextend_rag.attention.self_extend_attention`.

    Raises:
        TypeError: the model or the settings are of another type.
        UnsupportedModelError: the model can't be reproduced exactly; it is left as it was.
    """
    _check(model, settings)
    with lock_of(model).visit():
        _extend(model, settings, impl)


def _check(model: object, settings: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model of transformers, got {type(model).__name__}")
    if not isinstance(settings, SelfExtend):
        raise TypeError(
            "expected settings such as SelfExtend(group_size=8, neighbor_window=1024), got "
            f"{settings!r}"
        )


def restore(model: PreTrainedModel) -> None:
    """Give ``model`` back as it was before `extend`; nothing happens if it is not extended."""
    with lock_of(model).visit():
        _restore(model)


@contextmanager
def extended(
    model: PreTrainedModel, settings: SelfExtend, *, impl: Impl = "auto"
) -> Iterator[PreTrainedModel]:
    """Extend ``model`` for the length of a ``with`` block; see `extend`.

    On leaving, the model has the settings it had before, or is restored if it had none.
    """
    before = current_settings(model)
    extend(model, settings, impl=impl)
    try:
        yield model
    finally:
        if before is None:
            restore(model)
        else:
            extend(model, before[0], impl=before[1])


@contextmanager
def switched(
    model: PreTrainedModel, settings: SelfExtend | None, cancelled: Cancelled = never
) -> Iterator[None]:
    """Run the block with these settings, or plain attention for None; then as it was before.

    For who holds the model's turn. It does not ask for it, because an abandoned generation may end
    in another thread than the one it began in.
    """
    before = current_settings(model)
    if settings is None:
        _restore(model)
    else:
        _extend(model, settings, "auto", cancelled)
    try:
        yield
    finally:
        if before is None:
            _restore(model)
        else:
            _extend(model, *before)


@contextmanager
def by_rows(model: nn.Module) -> Iterator[None]:
    """Let attention look for rows within the block; an extended model's does so already.

    For who holds the model's turn. Only forwards of one token of each row belong in the block.
    """
    plain = [] if is_extended(model) else configs(model)
    with attention_implementations(plain, implementation_name):
        yield


def is_extended(model: nn.Module) -> bool:
    """Return whether ``model`` is extended now."""
    return _STATE in model.__dict__


def current_settings(model: nn.Module) -> tuple[SelfExtend, Impl] | None:
    """Return the settings and implementation of an extended model, None for a plain one."""
    for module in model.modules() if is_extended(model) else ():
        binding: Binding | None = getattr(module, BINDING, None)
        if binding is not None:
            return binding.settings, binding.impl
    return None


def support(model_or_config: PreTrainedModel | PreTrainedConfig) -> SupportReport:
    """Return, layer by layer, what `extend` would do with a model and why; changes nothing.

    For a model the answer is measured on this instance, with its weights, by a few forwards of some
    30 tokens, and remembered. For a configuration it is measured on a narrow copy with random
    weights; `extend` measures again on the model itself.

    Raises:
        UnsupportedModelError: a configuration from which no copy can be built.
    """
    if isinstance(model_or_config, PreTrainedConfig):
        return _inspect(sketch(model_or_config)).report
    with lock_of(model_or_config).visit(), _lock:
        return _inspect(model_or_config).report


_OURS = (RawPositions, ConsecutivePositions)


def _extend(
    model: PreTrainedModel, settings: SelfExtend, impl: Impl, cancelled: Cancelled = never
) -> None:
    with _lock:
        if is_extended(model):
            if _is_current(model):
                _bind(model, settings, impl)
                return
            _restore(model)
        _apply(model, _supported(model, cancelled), settings, impl)


def _restore(model: PreTrainedModel) -> None:
    with _lock:
        previous = model.__dict__.pop(_STATE, None)
        if previous is None:
            return
        for module in model.modules():
            module.__dict__.pop(BINDING, None)
            hooks = module._forward_pre_hooks
            for key in [k for k, hook in hooks.items() if isinstance(hook, _OURS)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for config, name in previous:
            set_implementation(config, name)


def _is_current(model: nn.Module) -> bool:
    """Whether a model turns queries and keys as when it was looked at; True if it never was."""
    return model not in _inspections or _inspections[model][0] == rotary_state(model)


def _inspect(model: PreTrainedModel, cancelled: Cancelled = never) -> Inspection:
    if model not in _inspections or not _is_current(model):
        if is_extended(model):  # a copy of an extended model
            before = current_settings(model)
            assert before is not None
            _restore(model)
            try:
                return _inspect(model, cancelled)
            finally:
                _extend(model, *before)
        with evaluating(model):
            found = _measured(model, Runner(model, cancelled))
        _inspections[model] = rotary_state(model), found
        if found.continuation is not None:
            _continuations[model] = found.continuation
    return _inspections[model][1]


def _measured(model: PreTrainedModel, run: Runner) -> Inspection:
    """Return what is known of models like this one, once checked on it, or measure everything."""
    known = recall(model)
    found = None if known is None else recalled(run, *known)
    if found is None:
        found = inspect_model(run, partial(_temporarily, model))
        if found.report.supported:
            remember(model, found.report, found.continuation or "")
    return found


@contextmanager
def _temporarily(model: PreTrainedModel, inspection: Inspection) -> Iterator[None]:
    _apply(model, inspection, SelfExtend(1, TOKENS // 2), "auto")
    try:
        yield
    finally:
        _restore(model)


def continuation_reason(
    model: PreTrainedModel, settings: SelfExtend | None, cancelled: Cancelled = never
) -> str:
    """Return why prompts can't be read in chunks, in words; empty if they can.

    For the holder of the model's lock. Measured once for a model, by four short forwards, or along
    with whether it can be extended.

    Args:
        model: plain or extended.
        settings: those that it is to run with next; None for plain attention.
        cancelled: looked at between the forwards.

    Raises:
        GenerationCancelled: it was cancelled before the last of them.
        UnsupportedModelError: the model can't be extended.
    """
    with _lock:
        if settings is not None and not is_extended(model):
            _supported(model, cancelled)
        if model not in _continuations:
            with switched(model, None), evaluating(model):
                ids = sample_tokens(model, TOKENS)
                reason, logits = measured_continuation(Runner(model, cancelled), ids)
            _continuations[model] = reason
            if logits is not None:
                _stock[model] = logits
        return _continuations[model]


def stock_logits(model: PreTrainedModel) -> Tensor:
    """Return the last logits ``[V]`` of a plain model's sample tokens; at most one forward."""
    if model not in _stock:
        _stock[model] = whole_logits(Runner(model), sample_tokens(model, TOKENS))
    return _stock[model]


def refuse_chunks(
    model: PreTrainedModel, settings: SelfExtend | None, instead: str, cancelled: Cancelled = never
) -> None:
    """Refuse to read in chunks with a model that can't; see `continuation_reason`.

    Args:
        instead: what to do.

    Raises:
        UnsupportedModelError: it can't.
    """
    reason = continuation_reason(model, settings, cancelled)
    if reason:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't continue from what it has read with more than one token "
            f"at a time: {reason}; {instead}"
        )


def _supported(model: PreTrainedModel, cancelled: Cancelled = never) -> Inspection:
    inspection = _inspect(model, cancelled)
    if not inspection.report.supported:
        raise UnsupportedModelError(
            f"{inspection.report.model} can't be extended: {inspection.report.reason}"
        )
    return inspection


def _apply(
    model: PreTrainedModel, inspection: Inspection, settings: SelfExtend, impl: Impl
) -> None:
    previous = [(config, config._attn_implementation) for config in inspection.configs]
    for config, name in previous:
        set_implementation(config, implementation_name(name or "eager"))
    for layer in inspection.extended:
        setattr(layer.module, BINDING, Binding(layer.rotary, settings, impl))
        name = layer.config._attn_implementation
        hook = RawPositions(layer.index, name, settings)
        layer.module.register_forward_pre_hook(hook, with_kwargs=True)
    for module in inspection.position_owners:
        module.register_forward_pre_hook(ConsecutivePositions(settings), with_kwargs=True)
    model.__dict__[_STATE] = previous


def _bind(model: nn.Module, settings: SelfExtend, impl: Impl) -> None:
    for module in model.modules():
        binding: Binding | None = getattr(module, BINDING, None)
        if binding is not None:
            setattr(module, BINDING, Binding(binding.rotary, settings, impl))
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _OURS):
                hook.settings = settings
