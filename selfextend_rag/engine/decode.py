"""The decode loop: prompts are read, then every step makes a token of each answer that runs.

A single answer is a loop over one row. `OneByOne` gives an answer a cache to itself, its own or a
borrowed one; `Together` keeps the keys of several as rows behind a shared prefix.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import FullLayer, Row, RowsCache, SelfExtendCache
from selfextend_rag.cache.cache import has_state, start_recording
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine.run import CachedPrefix, FinishReason, Run, Usage, feed, forward
from selfextend_rag.engine.sampling import GenerationSettings, Sampler, TokenConstraint
from selfextend_rag.errors import GenerationCancelled, SelfExtendError
from selfextend_rag.model import (
    by_rows,
    continuation_reason,
    lock_of,
    quick_steps,
    refuse_chunks,
    switched,
)
from selfextend_rag.positions import PositionMap

_LONG = 1024  # tokens from which on attention is a large part of a step


@dataclass(frozen=True, slots=True)
class BatchPrompt:
    """One prompt of a batch, and how its answer is made."""

    tokens: tuple[int, ...]  # all of it, the prefix included
    options: GenerationSettings
    constraint: TokenConstraint | None = None  # a fresh one, used up by the answer


class Answers(Iterator[tuple[int, int]], AbstractContextManager["Answers"]):
    """Pairs of a prompt's index and the next token of its answer, as they are generated.

    Each prompt is read alone; then all answers take each step together. One that ends is followed
    by the next prompt. Nothing runs before the first token is asked for, and a prefix is left as it
    was found, however the run ends. Leaving off early needs ``close()``, or a ``with`` block, or
    the model stays locked while this object lives. Made by `Engine.answers`.
    """

    def __init__(self, prompts: Sequence[BatchPrompt], keys: Keys, *, at_once: int) -> None:
        lengths = [len(prompt.tokens) - keys.cached for prompt in prompts]
        # Progress counts the tokens of all prompts behind the prefix.
        self._answers = [
            RunningAnswer(
                i, prompt, keys, keys.run.shifted(sum(lengths[:i]) - keys.cached, sum(lengths))
            )
            for i, prompt in enumerate(prompts)
        ]
        # It does not refer to this object, so that an abandoned one is closed at once.
        self._tokens = _tokens(self._answers, keys, at_once)

    def __next__(self) -> tuple[int, int]:
        return next(self._tokens)

    def __getitem__(self, index: int) -> RunningAnswer:
        """Return one prompt's answer, as far as it has come."""
        return self._answers[index]

    def close(self) -> None:
        """End all answers here and release the model."""
        self._tokens.close()
        for answer in self._answers:
            answer.end()

    def __exit__(self, *exception: object) -> None:
        self.close()


class Generation(Iterator[int], AbstractContextManager["Generation"]):
    """Token ids of one answer, as they are generated; leaving off early needs ``close()``."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def __next__(self) -> int:
        return next(self._answers)[1]

    def close(self) -> None:
        """End the answer here and release the model."""
        self._answers.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return how the answer ended; None before its end."""
        return self._answers[0].finish_reason

    @property
    def usage(self) -> Usage:
        """Return what it cost so far."""
        return self._answers[0].usage


class RunningAnswer:
    """One answer: its prompt, what it has come to, and its row of keys where it has one."""

    def __init__(self, index: int, prompt: BatchPrompt, keys: Keys, run: Run) -> None:
        self.index, self.prompt, self.run = index, prompt, run
        self.row: Row | None = None
        self.finish_reason: FinishReason | None = None  # before its end
        self.cached_tokens = keys.cached
        self.tokens: list[int] = []
        named = prompt.options.stop_token_ids
        self._ends = frozenset(end_tokens(keys.model) if named is None else named)
        self._sampler: Sampler | None = None
        self.started: float | None = None
        self._first: float | None = None  # when the first token was picked, and the latest
        self._latest: float | None = None

    @property
    def longest(self) -> int:
        """Return how many tokens there may be in the end, the prompt's included."""
        return len(self.prompt.tokens) + self.prompt.options.max_new_tokens

    def end(self, reason: FinishReason = "cancelled") -> None:
        """End it here, if it has not ended before; the others continue."""
        if self.finish_reason is None:
            self._latest = self._latest or time.perf_counter()
            self.finish_reason = reason

    def pick(self, logits: Tensor) -> int | None:
        """Return the next token for logits ``[1, V]``; None if it ends the answer."""
        prompt = self.prompt
        if self._sampler is None:
            self._sampler = Sampler(prompt.options, prompt.tokens, logits.device, prompt.constraint)
        token = self._sampler.pick(logits)
        self._latest = time.perf_counter()
        self._first = self._first or self._latest
        if token in self._ends:
            self.end("stop")
            return None
        self.tokens.append(token)
        if prompt.constraint is not None and prompt.constraint.finished:
            self.end("stop")
        elif len(self.tokens) == prompt.options.max_new_tokens:
            self.end("length")
        return token

    @property
    def usage(self) -> Usage:
        """Return what it cost so far; its steps are shared with the other rows."""
        started, first, latest = self.started, self._first, self._latest
        # without a token, the prefill lasts up to now, or to the end
        prefill = (first or latest or time.perf_counter()) - started if started else 0.0
        decode = latest - first if first and latest else 0.0
        prompt, cached = len(self.prompt.tokens), self.cached_tokens
        return Usage(prompt, cached, len(self.tokens), prefill, decode)


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the tokens that the model's generation configuration names as its end."""
    named = getattr(model.generation_config, "eos_token_id", None)
    if named is None:
        return ()
    return tuple(named) if isinstance(named, list | tuple) else (int(named),)


def _tokens(
    answers: list[RunningAnswer], keys: Keys, at_once: int
) -> Generator[tuple[int, int], None, None]:
    """Wait for the model, set it up, answer, and put everything back."""
    model, run = keys.model, keys.run
    try:
        with lock_of(model).hold(run.cancelled) as held:
            if not held or not answers or run.cancelled():
                return
            answers[0].started = time.perf_counter()
            keys.check()
            if run.pictures is not None:
                run.pictures.refuse_unproven(keys.settings, run.cancelled)
            watching = nullcontext() if run.observer is None else run.observer.watching(model)
            with switched(model, keys.settings, run.cancelled), _quick(model, answers), watching:
                yield from _steps(answers, keys, at_once)
    except GenerationCancelled:
        pass  # the reasons say it
    finally:
        for answer in answers:
            answer.end()


def _quick(model: PreTrainedModel, answers: list[RunningAnswer]) -> AbstractContextManager[None]:
    """Return what makes steps quicker, where they are long enough for the check that it takes."""
    long = max(answer.longest for answer in answers) >= _LONG
    return quick_steps(model) if long else nullcontext()


def _steps(answers: list[RunningAnswer], keys: Keys, at_once: int) -> Iterator[tuple[int, int]]:
    waiting = deque(answers)
    rows: list[tuple[RunningAnswer, Tensor]] = []  # each with the logits of its next token, [1, V]
    with keys:
        while waiting or rows:
            while waiting and len(rows) < at_once:
                answer = waiting.popleft()
                answer.started = answer.started or time.perf_counter()
                rows.append((answer, keys.begin(answer)))
            for answer, logits in rows:
                try:
                    token = answer.pick(logits)
                except SelfExtendError as error:
                    if len(answers) > 1:
                        number = answer.index + 1
                        error.add_note(f"It was the answer to question {number} of the batch.")
                    raise
                if token is not None:
                    yield answer.index, token
            if keys.run.cancelled():
                return
            for answer, _ in rows:
                if answer.finish_reason is not None:
                    keys.end(answer)
            running = [answer for answer, _ in rows if answer.finish_reason is None]
            rows = list(zip(running, keys.step(running).split(1), strict=True)) if running else []


@dataclass(eq=False)
class Keys(AbstractContextManager["Keys"]):
    """Where the keys of running answers are; a block that ends well has weighed all of them."""

    model: PreTrainedModel
    run: Run
    settings: PositionMap | None
    chunk_size: int
    prefix: CachedPrefix | None
    _running: list[RunningAnswer] = field(default_factory=list, init=False)

    @property
    def cached(self) -> int:
        """Return the tokens that all prompts begin with, and that have been read."""
        return 0 if self.prefix is None else len(self.prefix)

    def check(self) -> None:
        """Raise what speaks against continuing the prefix, once the model is free."""
        if self.prefix is not None:
            self.prefix.check_model(self.model)
            if self.run.reserve is not None:
                self.run.reserve(self.prefix.cache)

    @abstractmethod
    def begin(self, answer: RunningAnswer) -> Tensor:
        """Read a prompt and return the logits of the first token to come, ``[1, V]``."""

    @abstractmethod
    def step(self, answers: list[RunningAnswer]) -> Tensor:
        """Run the latest token of each answer and return the logits ``[B, V]``."""

    def holding(self, answer: RunningAnswer) -> AbstractContextManager[object]:
        """Within the block the cache holds all tokens of an answer."""
        return nullcontext()

    def release(self, answer: RunningAnswer, *, sound: bool) -> None:
        """Give up the keys of an answer; they are right if it was ``sound``."""
        answer.row = None

    def end(self, answer: RunningAnswer, *, sound: bool = True) -> None:
        """Weigh an answer that has ended, and give up its keys."""
        self._running.remove(answer)
        try:
            if sound:
                self._weigh(answer, ended=True)
        finally:
            self.release(answer, sound=sound)

    def _feed(self, answer: RunningAnswer, cache: SelfExtendCache) -> Tensor:
        """Read what a cache of the first ``answer.cached_tokens`` of its prompt lacks."""
        self._about_to_run([answer])
        cached = answer.cached_tokens
        rest = answer.prompt.tokens[cached:]
        return feed(self.model, rest, cached, cache, answer.run, self.chunk_size)

    def _about_to_run(self, answers: Sequence[RunningAnswer]) -> None:
        if self.run.observer is not None:
            self.run.observer.running([answer.index for answer in answers])

    def _weigh(self, answer: RunningAnswer, *, ended: bool) -> None:
        observer = self.run.observer
        if observer is not None and (ended or observer.is_due(answer.index)):
            with self.holding(answer):
                observer.weigh(answer.index, ended=ended)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # Between two tokens, where a consumer leaves off, all that is there is right.
        sound = kind in (None, GeneratorExit, GenerationCancelled)
        for answer in list(self._running):
            self.end(answer, sound=sound)


@dataclass(eq=False)
class OneByOne(Keys):
    """An answer has a cache to itself: its own, one of an earlier prompt, or the prefix's."""

    kv_bits: int | None = None  # of its own cache
    reuse: PrefixStore | None = None  # has earlier prompts, and gets this one; not with a prefix
    _state: Hashable = field(default=None, init=False)  # of the model, for the store

    def begin(self, answer: RunningAnswer) -> Tensor:
        self._borrowed = ExitStack()
        if self.prefix is None:
            cache = self._own_cache(answer)
            if self.run.reserve is not None:
                self.run.reserve(cache)
        else:
            self.prefix.cache.set_capacity(max(answer.longest, self.prefix.cache.capacity))
            cache = self._borrowed.enter_context(self.prefix.borrowed())
        self._cache = cache
        self._running.append(answer)
        logits = self._feed(answer, cache)
        if self.reuse is not None and not has_state(cache):
            start_recording(cache)  # the next prompt may leave off in this answer
        return logits

    def _own_cache(self, answer: RunningAnswer) -> SelfExtendCache:
        """Return a cache of the first ``cached_tokens`` of the prompt."""
        model, settings, tokens = self.model, self.settings, answer.prompt.tokens
        if 1 < self.chunk_size < len(tokens):
            instead = f"set chunk_size to {len(tokens)} to read it at once"
            refuse_chunks(model, settings, instead, self.run.cancelled)
        if self.reuse is not None and continuation_reason(model, settings, self.run.cancelled):
            self.reuse = None
        if self.reuse is not None:
            found, answer.cached_tokens, self._state = self.reuse.take(
                tokens, settings, capacity=answer.longest, blank=self._blank_cache
            )
            if found is not None:
                return found
        return SelfExtendCache(model.config, answer.longest, self.kv_bits)

    def _blank_cache(self) -> SelfExtendCache:
        """Return the cache of one token, which shows how this model keeps its keys."""
        cache = SelfExtendCache(self.model.config, 1, self.kv_bits)
        forward(self.model, [(0,)], cache)
        return cache

    def step(self, answers: list[RunningAnswer]) -> Tensor:
        (answer,) = answers
        logits = forward(self.model, [answer.tokens[-1:]], self._cache)
        self._weigh(answer, ended=False)
        return logits

    def release(self, answer: RunningAnswer, *, sound: bool) -> None:
        cache = self._cache
        if sound and self.reuse is not None and (length := cache.get_seq_length()):
            tokens = (*answer.prompt.tokens, *answer.tokens)[:length]
            self.reuse.put(tokens, self.settings, cache, self._state)
        self._borrowed.close()


@dataclass(eq=False)
class Together(Keys):
    """Answers are rows that share the keys of a prefix; each keeps its own behind them."""

    prefix: CachedPrefix

    def begin(self, answer: RunningAnswer) -> Tensor:
        """Read a prompt as it is read alone, and take its keys out of the prefix again."""
        with self.prefix.borrowed() as cache:
            logits = self._feed(answer, cache)
            answer.row = Row(cache, self.cached, answer.longest - self.cached)
        self._running.append(answer)
        return logits

    def step(self, answers: list[RunningAnswer]) -> Tensor:
        self._about_to_run(answers)
        rows = [answer.row for answer in answers if answer.row is not None]
        logits = step(self.model, rows, [answer.tokens[-1] for answer in answers], self.prefix)
        for answer in answers:
            self._weigh(answer, ended=False)
        return logits

    @contextmanager
    def holding(self, answer: RunningAnswer) -> Iterator[None]:
        """Within the block, layers that keep all keys hold those of a row behind the prefix's."""
        assert answer.row is not None
        with torch.inference_mode(), ExitStack() as stack:
            for layer, own in zip(self.prefix.cache.layers, answer.row.layers, strict=True):
                if isinstance(layer, FullLayer) and isinstance(own, FullLayer):
                    layer.append(own)
                    stack.callback(layer.crop, self.cached - layer.get_seq_length())
            yield


def step(
    model: PreTrainedModel, rows: Sequence[Row], tokens: Sequence[int], prefix: CachedPrefix
) -> Tensor:
    """Run one token of each row and return the logits ``[B, V]``; the rows keep its keys.

    Raises:
        UnsupportedModelError: the model's attention can't be done by rows.
    """
    together = RowsCache(prefix.cache, rows)
    positions = [[position] for position in together.positions]
    with by_rows(model):
        logits = forward(model, [[token] for token in tokens], together, positions)
    together.check_attended()
    for row in rows:
        row.length += 1
    return logits
