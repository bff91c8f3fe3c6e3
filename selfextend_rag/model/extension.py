"""Extend a transformers model in place, restore it, and say what can be extended.

Nothing here knows a model by name. One instance is changed: two kinds of pre-hooks, an attribute by
which its modules find its `Extension`, and the attention implementation of its configurations.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfextend_rag.attention import Impl
from selfextend_rag.cache.identity import rotary_state
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import verify
from selfextend_rag.model.attention_fn import (
    implementation_name,
    implementations,
    switch,
    switch_back,
)
from selfextend_rag.model.hooks import PLAIN, Extension, Observer, binding_of
from selfextend_rag.model.report import SupportReport, recall, remember
from selfextend_rag.model.tiny import tiny_copy
from selfextend_rag.model.verify import Cancelled, Inspection
from selfextend_rag.positions import PositionMap, SelfExtend

_SECONDS_BETWEEN_LOOKS = 0.1
_Switch = tuple[PositionMap, Impl]


def never() -> bool:
    """Return False: nothing is cancelled."""
    return False


class ModelLock:
    """The right to run or change one model; waiting for it can be cancelled.

    A thread that holds it and asks for another run would wait for itself for ever, so that is
    refused. Another thread may release it, as happens when an abandoned generation is collected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def hold(self, cancelled: Callable[[], bool]) -> Iterator[bool]:
        """Hold the lock within the block; yields False, at once, if cancelled before it was free.

        Raises:
            RuntimeError: this thread holds it already.
        """
        self.refuse_holder()
        held = self._lock.acquire(blocking=False)
        while not held and not cancelled():  # which can't wake this thread, so it is looked at
            held = self._lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS)
        if not held:
            yield False
            return
        self._holder = threading.get_ident()
        try:
            yield True
        finally:
            self._holder = None
            self._lock.release()

    def visit(self) -> AbstractContextManager[object]:
        """Hold the lock within a block, also where this thread holds it already."""
        mine = self._holder == threading.get_ident()
        return nullcontext() if mine else self.hold(never)

    def refuse_holder(self) -> None:
        """Raise a RuntimeError in a thread that holds the lock, and would wait for itself."""
        if self._holder == threading.get_ident():
            raise RuntimeError(
                "this thread has an unfinished generation on the same model, or is in a callback "
                "of one, so neither could continue; read it to its end or close it first"
            )


_locks: WeakKeyDictionary[nn.Module, ModelLock] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(model: nn.Module) -> ModelLock:
    """Return the lock that everything that runs or changes this instance shares."""
    with _guard:
        return _locks.setdefault(model, ModelLock())


@dataclass
class _Measured:
    """What was found on one model."""

    inspection: Inspection | None = None
    rotary: object = None  # the frequencies at which that was made; a model may be given others
    continuation: str | None = None  # why it can't continue from a cache with several tokens
    stock: Tensor | None = None  # the plain model's last logits of the sample tokens


_measured: WeakKeyDictionary[nn.Module, _Measured] = WeakKeyDictionary()


def extend(model: PreTrainedModel, settings: PositionMap, *, impl: Impl = "auto") -> None:
    """Switch ``model``, in place, to SelfExtend attention; again, to change its settings.

    Keys reach any cache un-rotated from now on, so a cache filled before, or under other settings,
    does not belong to the model any more. The weights are not touched. While another thread runs
    the model by an `Engine`, this waits for its end.

    Args:
        model: any decoder of transformers that `support` accepts; it may be dispatched over
            devices. It should be in evaluation mode.
        settings: group size and neighbor window; or another map of `selfextend_rag.maps`.
        impl: attention implementation, see `selfextend_rag.attention.self_extend_attention`.

    Raises:
        TypeError: the model or the settings are of another type.
        UnsupportedModelError: the model can't be reproduced exactly; it is left as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model of transformers, got {type(model).__name__}")
    if not isinstance(settings, PositionMap):
        raise TypeError(
            "expected settings such as SelfExtend(group_size=8, neighbor_window=1024), got "
            f"{settings!r}"
        )
    with lock_of(model).visit():
        _switch_to(model, (settings, impl))


def restore(model: PreTrainedModel) -> None:
    """Give ``model`` back as it was before `extend`; nothing happens if it is not extended."""
    with lock_of(model).visit():
        _switch_to(model, None)


@contextmanager
def extended(
    model: PreTrainedModel, settings: PositionMap, *, impl: Impl = "auto"
) -> Iterator[PreTrainedModel]:
    """Extend ``model`` for the length of a ``with`` block; see `extend`.

    On leaving, the model has the settings it had before, or is restored if it had none.
    """
    before = current_settings(model)
    extend(model, settings, impl=impl)
    try:
        yield model
    finally:
        with lock_of(model).visit():
            _switch_to(model, before)


@contextmanager
def switched(
    model: PreTrainedModel, settings: PositionMap | None, cancelled: Cancelled = never
) -> Iterator[None]:
    """Run the block with these settings, or plain attention for None; then as it was before.

    For the holder of the model's lock. It does not ask for it, because an abandoned generation may
    end in another thread than the one it began in.
    """
    before = current_settings(model)
    _switch_to(model, None if settings is None else (settings, "auto"), cancelled)
    try:
        yield
    finally:
        _switch_to(model, before)


def by_rows(model: nn.Module) -> AbstractContextManager[None]:
    """Let attention look for rows within the block; an extended model's does so already.

    For the holder of the model's lock. Only forwards of one token of each row belong in the block.
    """
    return attached(model, implementation_name)


@contextmanager
def attached(
    model: nn.Module, name: Callable[[str], str], observer: Observer | None = None
) -> Iterator[None]:
    """Notify an observer within the block, as an extended model or as a plain one.

    A plain one gets an extension without settings, and the implementations that ``name`` says.
    """
    binding = binding_of(model)
    extension = Extension(None) if binding is PLAIN else binding.extension
    before = extension.observer
    with implementations(model, name) if extension.settings is None else nullcontext():
        if binding is PLAIN:
            extension.attach(model, {})
        extension.observer = observer or before
        try:
            yield
        finally:
            extension.observer = before
            if binding is PLAIN:
                extension.detach(model)


def is_extended(model: nn.Module) -> bool:
    """Return whether ``model`` is extended now."""
    return current_settings(model) is not None


def current_settings(model: nn.Module) -> tuple[PositionMap, Impl] | None:
    """Return the settings and implementation of an extended model, None for a plain one."""
    extension = binding_of(model).extension
    return None if extension.settings is None else (extension.settings, extension.impl)


def support(model_or_config: PreTrainedModel | PreTrainedConfig) -> SupportReport:
    """Return, layer by layer, what `extend` would do with a model and why; changes nothing.

    For a model the answer is measured on this instance, with its weights, by a few forwards of some
    30 tokens, and remembered. For a configuration it is measured on a narrow copy with random
    weights; `extend` measures again on the model itself.

    Raises:
        UnsupportedModelError: a configuration from which no copy can be built.
    """
    if isinstance(model_or_config, PreTrainedConfig):
        return _inspect(tiny_copy(model_or_config)).report
    with lock_of(model_or_config).visit():
        return _inspect(model_or_config).report


def continuation_reason(
    model: PreTrainedModel, settings: PositionMap | None, cancelled: Cancelled = never
) -> str:
    """Return why prompts can't be read in chunks; empty if they can.

    For the holder of the model's lock, with the settings that it is to run under next. Measured
    once for a model, by four short forwards, or along with whether it can be extended.

    Raises:
        GenerationCancelled: it was ``cancelled``, which is looked at between the forwards.
        UnsupportedModelError: the model can't be extended.
    """
    if settings is not None and not is_extended(model):
        _supported(model, cancelled)
    known = _measured.setdefault(model, _Measured())
    if known.continuation is None:
        with switched(model, None), verify.evaluating(model):
            run = verify.Runner(model, cancelled)
            known.continuation, known.stock = verify.measured_continuation(run)
    return known.continuation


def refuse_chunks(
    model: PreTrainedModel, settings: PositionMap | None, instead: str, cancelled: Cancelled = never
) -> None:
    """Raise an UnsupportedModelError that says what to do ``instead`` of reading in chunks, if a
    model can't; see `continuation_reason`.
    """
    reason = continuation_reason(model, settings, cancelled)
    if reason:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't continue from what it has read with more than one token "
            f"at a time: {reason}; {instead}"
        )


def stock_logits(model: PreTrainedModel) -> Tensor:
    """Return the last logits ``[V]`` of a plain model's sample tokens; at most one forward."""
    known = _measured.setdefault(model, _Measured())
    if known.stock is None:
        known.stock = verify.whole_logits(verify.Runner(model, never))
    return known.stock


def _switch_to(model: PreTrainedModel, to: _Switch | None, cancelled: Cancelled = never) -> None:
    extension = binding_of(model).extension
    if extension.settings is not None:
        if to is not None and _is_current(model):
            extension.settings, extension.impl = to
            return
        extension.detach(model)
        switch_back(extension.previous)
    if to is not None:
        _apply(model, _supported(model, cancelled), *to)


def _apply(model: nn.Module, found: Inspection, settings: PositionMap, impl: Impl) -> None:
    extension = Extension(settings, impl)
    extension.previous = switch(found.configs, implementation_name)
    extension.attach(model, found.rotary)
    for module in found.position_owners:
        extension.hook(module, extension.enter_forward)


def _supported(model: PreTrainedModel, cancelled: Cancelled) -> Inspection:
    found = _inspect(model, cancelled)
    report = found.report
    if not report.supported:
        raise UnsupportedModelError(f"{report.model} can't be extended: {report.reason}")
    return found


def _is_current(model: nn.Module) -> bool:
    """Whether a model rotates queries and keys as when it was looked at; True if it never was."""
    known = _measured.get(model, _Measured())
    return known.inspection is None or known.rotary == rotary_state(model)


def _inspect(model: PreTrainedModel, cancelled: Cancelled = never) -> Inspection:
    known = _measured.setdefault(model, _Measured())
    if known.inspection is None or not _is_current(model):
        with switched(model, None), verify.evaluating(model):  # a copy of an extended model is one
            found = _inspected(model, verify.Runner(model, cancelled))
            known.inspection, known.rotary = found, rotary_state(model)
            if found.continuation is not None:
                known.continuation = found.continuation
        return found
    return known.inspection


def _inspected(model: PreTrainedModel, run: verify.Runner) -> Inspection:
    """Return what is known of models like this one, once checked on it, or measure everything."""
    known = recall(model)
    found = None if known is None else verify.recalled(run, *known)
    if found is None:
        found = verify.inspect_model(run, partial(_temporarily, model))
        if found.report.supported:
            remember(model, found.report, found.continuation or "")
    return found


@contextmanager
def _temporarily(model: PreTrainedModel, inspection: Inspection) -> Iterator[None]:
    _apply(model, inspection, SelfExtend(1, verify.TOKENS // 2), "auto")
    try:
        yield
    finally:
        _switch_to(model, None)
