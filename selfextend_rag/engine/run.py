"""One run of a model: what its caller wants of it, where it starts, its forwards, and its cost."""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import can_rewind, rewind, shortest
from selfextend_rag.cache.identity import model_state
from selfextend_rag.errors import CacheMismatchError, GenerationCancelled, UnsupportedModelError
from selfextend_rag.model.extension import never
from selfextend_rag.model.probe import input_weight
from selfextend_rag.positions import PositionMap

_SECONDS_BETWEEN_LOOKS = 0.05
_LONG_CHUNK = 64  # tokens; shorter ones are run in a moment

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and the tokens to read, after each chunk."""

Cancelled = threading.Event | Callable[[], bool] | None
"""Looked at between chunks and tokens: an event, or a function that says whether to stop."""

Reserve = Callable[[SelfExtendCache], None]
"""Called with the cache that will grow, before anything runs; raises where memory lacks space."""

FinishReason = Literal["stop", "length", "cancelled"]
"""How an answer ended: the model or a stop text ended it, it was full, or it was cancelled."""


class Pictures(Protocol):
    """Has the embeddings of a prompt in which there are pictures."""

    def embeddings(self, begin: int, end: int) -> Tensor | None:
        """Return those of so many tokens, ``[1, T, hidden]``; None if they are text alone."""

    def refuse_unproven(self, settings: PositionMap | None, cancelled: Callable[[], bool]) -> None:
        """Refuse a model that would not read them as the stock model does."""


class Observer(Protocol):
    """Watches the model's attention while it makes the answers of a run, counted from 0."""

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[object]:
        """Watch within the block; the model is set up, and stays what it is."""

    def running(self, answers: Sequence[int]) -> None:
        """Note whose tokens come next: those of one answer, or one token of each of several."""

    def is_due(self, answer: int) -> bool:
        """Return whether so much has been noted of an answer that it should be weighed now."""

    def weigh(self, answer: int, *, ended: bool) -> None:
        """Weigh what was noted of an answer; the cache holds all of its tokens at this moment."""


def is_cancelled(cancelled: Cancelled) -> Callable[[], bool]:
    """Return a function that says whether to stop."""
    if cancelled is None:
        return never
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the caller of a run wants to hear of it, and may stop it by."""

    progress: Progress | None = None
    cancelled: Callable[[], bool] = never  # see `is_cancelled`
    reserve: Reserve | None = None  # called once the model is free and nothing has run
    observer: Observer | None = None
    pictures: Pictures | None = None  # of the prompt

    def shifted(self, by: int, total: int) -> Run:
        """Return a run that reports its progress with so many tokens more, out of ``total``."""
        report = self.progress
        if report is None:
            return self
        return replace(self, progress=lambda done, _: report(done + by, total))


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The first tokens of prompts to come, and the cache that holds them.

    It belongs to the model that read it and to the settings it was read under.
    """

    tokens: tuple[int, ...]
    settings: PositionMap | None  # None for plain attention
    cache: SelfExtendCache = field(repr=False)
    state: Hashable = field(default=None, repr=False)  # see `model_state`; None is not looked at

    def __len__(self) -> int:
        return len(self.tokens)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that is not as it was when it read the tokens.

        Raises:
            CacheMismatchError: its weights, adapters or rotary frequencies have changed.
        """
        if self.state is not None and self.state != model_state(model):
            raise CacheMismatchError(
                f"the weights or rotary frequencies of {type(model).__name__}, or its adapters, "
                f"have changed since it read these {len(self)} tokens; read them again, or put "
                "them back"
            )

    def check_prompt(self, tokens: tuple[int, ...], settings: PositionMap | None) -> None:
        """Refuse a prompt that does not continue this prefix under its settings, or under any.

        Raises:
            CacheMismatchError: the message says why.
        """
        if settings not in (None, self.settings):
            under = f"{self.settings}, not under {settings}"
            raise CacheMismatchError(f"the cached tokens were read under {under}; read them again")
        if tokens[: len(self)] != self.tokens:
            begins = f"does not begin with the {len(self)} cached ones"
            raise CacheMismatchError(f"the prompt of {len(tokens)} tokens {begins}")
        if len(tokens) == len(self):
            raise CacheMismatchError(
                f"all {len(tokens)} tokens of the prompt are cached; the last must be run, for its "
                "logits, so leave it out of the prefix"
            )

    @contextmanager
    def borrowed(self) -> Iterator[SelfExtendCache]:
        """Yield the cache, to be appended to within the block; then it is cut back.

        Layers with a recurrent state can't be cut back, so a copy is yielded where there are any.
        """
        if not can_rewind(self.cache):
            yield copy.deepcopy(self.cache)
            return
        try:
            yield self.cache
        finally:
            rewind(self.cache, len(self.tokens))


class _BrokenOff(GenerationCancelled):
    """Cancelled within a chunk; the cache holds parts of it, and can't be used any more."""


class _Cancelled(BaseException):
    """Ends a forward; no ``Exception``, which code of a model may catch."""


@contextmanager
def _interrupted_by(cancelled: Callable[[], bool], model: PreTrainedModel) -> Iterator[None]:
    """Raise `_Cancelled` in a forward within the block, between two modules, once cancelled.

    A chunk of a long prompt may take many seconds, and smaller ones would take longer together.
    """
    looked = time.monotonic()

    def look(module: nn.Module, given: object) -> None:
        nonlocal looked
        if torch.compiler.is_compiling() or time.monotonic() - looked < _SECONDS_BETWEEN_LOOKS:
            return
        looked = time.monotonic()
        if cancelled():
            raise _Cancelled

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_pre_hook(look) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def feed(
    model: PreTrainedModel,
    tokens: tuple[int, ...],
    cached: int,
    cache: Cache,
    run: Run,
    chunk_size: int,
) -> Tensor:
    """Run tokens in chunks after those cached, and return the last one's logits ``[1, V]``.

    For callers that hold the model's lock and have set it up, as `forward` is. A cancellation is
    seen between chunks and, where they are long, within them; the cache then ends with the last
    whole chunk.

    Raises:
        GenerationCancelled: cancelled before the last chunk was read. It is of a type of its own
            where the cache can't be cut back to a whole chunk.
        UnsupportedModelError: the model keeps no keys in the cache.
    """
    total = cached + len(tokens)
    for start in range(0, len(tokens), chunk_size):
        if run.cancelled():
            raise GenerationCancelled(cached + start, total)
        chunk = tokens[start : start + chunk_size]
        long = len(chunk) >= _LONG_CHUNK
        try:
            with _interrupted_by(run.cancelled, model) if long else nullcontext():
                given, begin = None, cached + start
                if run.pictures is not None:
                    given = run.pictures.embeddings(begin, begin + len(chunk))
                logits = forward(model, [chunk], cache, embeddings=given)
        except _Cancelled:
            done = cached + start
            if run.observer is not None or not can_rewind(cache) or shortest(cache) > done:
                raise _BrokenOff(done, total) from None
            rewind(cache, done)
            raise GenerationCancelled(done, total) from None
        done = cached + start + len(chunk)
        if cache.get_seq_length() != done:
            raise UnsupportedModelError(
                f"{type(model).__name__} does not keep its keys in the cache it is given "
                f"({cache.get_seq_length()} of {done} tokens arrived)"
            )
        if run.progress is not None:
            run.progress(done, total)
    return logits


@torch.inference_mode()
def forward(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    cache: Cache,
    positions: Sequence[Sequence[int]] | None = None,
    embeddings: Tensor | None = None,
) -> Tensor:
    """Run the next tokens of B rows, of one length, and return the last ones' logits ``[B, V]``.

    Where no positions are given, the model counts them, behind the tokens that are cached.
    ``embeddings`` ``[B, T, hidden]`` are run in place of tokens among which there are pictures.

    Raises:
        ValueError: the model is in training mode.
    """
    check_mode(model)
    device = _input_device(model)
    options: dict[str, object] = dict(_last_logits(model))
    if positions is not None:
        options["position_ids"] = torch.tensor(positions, device=device)
    if embeddings is None:
        options["input_ids"] = torch.tensor(rows, device=device)
    else:
        options["inputs_embeds"] = embeddings
    output = model(past_key_values=cache, use_cache=True, **options)
    logits: Tensor = output.logits
    return logits[:, -1]


@torch.inference_mode()
def last_nlls(
    model: PreTrainedModel, tokens: Sequence[int], count: int, cache: Cache
) -> list[float]:
    """Run the next tokens at once; return the last ``count`` ones' negative log-likelihoods.

    In nats. There must be more tokens than that, as the first logits predict the second token.

    Raises:
        ValueError: the model is in training mode.
    """
    check_mode(model)
    ids = torch.tensor([list(tokens)], device=_input_device(model))
    options: dict[str, Any] = {"logits_to_keep": count + 1} if _last_logits(model) else {}
    output = model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
    logits: Tensor = output.logits[0, -count - 1 : -1]
    targets = ids[0, -count:].to(logits.device)
    values: list[float] = F.cross_entropy(logits.float(), targets, reduction="none").tolist()
    return values


def _input_device(model: PreTrainedModel) -> torch.device:
    device = input_weight(model).device
    # Offloaded weights are on no device; accelerate's hooks then move what they are given.
    return torch.device("cpu") if device.type == "meta" else device


def check_mode(model: PreTrainedModel) -> None:
    """Refuse a model in training mode, whose dropout would be heard in keys and answers."""
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")


_asked: WeakKeyDictionary[PreTrainedModel, dict[str, int]] = WeakKeyDictionary()


def _last_logits(model: PreTrainedModel) -> dict[str, int]:
    """Return what asks a model for the last token's logits alone, where it can be asked."""
    if model not in _asked:
        accepted = inspect.signature(model.forward).parameters
        _asked[model] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    return _asked[model]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one answer cost.

    Args:
        prompt_tokens: tokens of the prompt, the cached ones included.
        cached_tokens: tokens of the prompt that had been read before.
        completion_tokens: tokens generated, without the one that ended the answer.
        prefill_seconds: from the start of reading to the first token.
        decode_seconds: from the first token to the last.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def total_tokens(self) -> int:
        """Return the tokens of prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of decoding after the first token; 0 when there was no second."""
        if self.completion_tokens < 2 or self.decode_seconds <= 0:
            return 0.0
        return (self.completion_tokens - 1) / self.decode_seconds

    def to_dict(self) -> dict[str, int | float]:
        """Return the figures as JSON values, the derived ones too."""
        speed = self.tokens_per_second
        return {**asdict(self), "total_tokens": self.total_tokens, "tokens_per_second": speed}
