"""The decode loop: prompts are read, then every step makes a token of each answer that runs.

A single answer is a loop over one row. `OneByOne` gives an answer a cache to itself, its own or a
borrowed one; `Together` keeps the keys of several as rows behind a shared prefix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor

from selfextend_rag.cache import Row, SelfExtendCache
from selfextend_rag.cache.rewind import has_state, start_recording
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.rows import behind, step
from selfextend_rag.engine.run import FinishReason, Run, Tally, Usage
from selfextend_rag.engine.sampling import GenerationSettings, Sampler, TokenConstraint
from selfextend_rag.errors import GenerationCancelled, SelfExtendError
from selfextend_rag.model import continuation_reason, refuse_chunks, switched
from selfextend_rag.positions import SelfExtend

if TYPE_CHECKING:
    from selfextend_rag.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class BatchPrompt:
    """One prompt of a batch.

    Args:
        tokens: the whole prompt, the prefix included.
        options: length, sampling and stop tokens of its answer.
        constraint: what its answer is constrained by; a fresh one, used up by it.
    """

    tokens: tuple[int, ...]
    options: GenerationSettings
    constraint: TokenConstraint | None = None


class Answers(Iterator[tuple[int, int]]):
    """Pairs of a prompt's index and the next token of its answer, as they are generated.

    Each prompt is read alone; then all answers take each step together. One that ends is followed
    by the next prompt. Nothing runs before the first token is asked for, and a prefix is left as it
    was found, however the run ends. Leaving off early needs ``close()``, or a ``with`` block, or
    the model stays locked while this object lives. Made by `Engine.answers`.
    """

    def __init__(
        self, engine: Engine, prompts: Sequence[BatchPrompt], keys: _Keys, run: Run, *, at_once: int
    ) -> None:
        self._answers = _answers(engine, prompts, keys.cached, run)
        # The generator does not refer to this object, so that an abandoned one is closed at once.
        self._tokens = _tokens(engine, self._answers, keys, run, at_once)

    def __next__(self) -> tuple[int, int]:
        return next(self._tokens)

    def stop(self, index: int) -> None:
        """End one answer here; the others continue."""
        self._answers[index].end("cancelled")

    def close(self) -> None:
        """End all answers here and release the model."""
        self._tokens.close()
        for answer in self._answers:
            answer.end("cancelled")

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def finish_reason(self, index: int) -> FinishReason | None:
        """Return how an answer ended; None before its end."""
        return self._answers[index].tally.finish_reason

    def usage(self, index: int) -> Usage:
        """Return what an answer cost so far; its steps are shared with the other rows."""
        return self._answers[index].tally.usage()


class Generation(Iterator[int]):
    """Token ids of one answer, as they are generated.

    Leaving off early needs ``close()``, or the model stays locked while this object lives; a
    ``with`` block does it.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def __next__(self) -> int:
        return next(self._answers)[1]

    def close(self) -> None:
        """End the answer here and release the model."""
        self._answers.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Return how the answer ended; None before its end."""
        return self._answers.finish_reason(0)

    @property
    def usage(self) -> Usage:
        """Return what it cost so far."""
        return self._answers.usage(0)


class _Answer:
    """One answer: its prompt, what it has come to, and its row of keys where it has one."""

    def __init__(
        self, index: int, prompt: BatchPrompt, tally: Tally, ends: Sequence[int], run: Run
    ) -> None:
        self.index, self.prompt, self.tally, self.run = index, prompt, tally, run
        self.row: Row | None = None
        self._ends = frozenset(ends)
        self._sampler: Sampler | None = None

    @property
    def longest(self) -> int:
        """Return how many tokens there may be in the end."""
        return len(self.prompt.tokens) + self.prompt.options.max_new_tokens

    @property
    def ended(self) -> bool:
        return self.tally.finish_reason is not None

    def end(self, reason: FinishReason) -> None:
        """Note how it ended, if it has not ended before."""
        if not self.ended:
            self.tally.finish(reason)

    def pick(self, logits: Tensor) -> int | None:
        """Return the next token for logits ``[1, V]``; None if it ends the answer."""
        prompt, tally = self.prompt, self.tally
        if self._sampler is None:
            self._sampler = Sampler(prompt.options, prompt.tokens, logits.device, prompt.constraint)
        token = self._sampler.pick(logits)
        tally.tick()
        if token in self._ends:
            self.end("stop")
            return None
        tally.tokens.append(token)
        if prompt.constraint is not None and prompt.constraint.finished:
            self.end("stop")
        elif len(tally.tokens) == prompt.options.max_new_tokens:
            self.end("length")
        return token


def _answers(
    engine: Engine, prompts: Sequence[BatchPrompt], cached: int, run: Run
) -> list[_Answer]:
    """Return the answers to come; progress counts the tokens of all prompts behind the prefix."""
    lengths = [len(prompt.tokens) - cached for prompt in prompts]
    answers = []
    for index, (prompt, before) in enumerate(zip(prompts, accumulate([0, *lengths]), strict=False)):
        ends = prompt.options.stop_token_ids
        answers.append(
            _Answer(
                index,
                prompt,
                Tally(len(prompt.tokens), cached),
                engine.end_tokens() if ends is None else ends,
                run.shifted(before - cached, sum(lengths)),
            )
        )
    return answers


def _tokens(
    engine: Engine, answers: list[_Answer], keys: _Keys, run: Run, at_once: int
) -> Generator[tuple[int, int], None, None]:
    """Wait for the model, set it up, answer, and put everything back."""
    try:
        if run.cancelled() or not answers:
            return
        with engine.lock.hold(run.cancelled) as held:
            if not held:
                return
            answers[0].tally.start()
            observer = run.observer
            watching = nullcontext() if observer is None else observer.watching(engine.model)
            with switched(engine.model, keys.ready(), run.cancelled), watching:
                yield from _steps(answers, keys, run, at_once)
    except GenerationCancelled:
        pass  # the reasons say it
    finally:
        for answer in answers:
            answer.end("cancelled")


def _steps(
    answers: list[_Answer], keys: _Keys, run: Run, at_once: int
) -> Iterator[tuple[int, int]]:
    waiting = deque(answers)
    rows: list[tuple[_Answer, Tensor]] = []  # each with the logits of its next token, [1, V]
    with keys:
        while waiting or rows:
            while waiting and len(rows) < at_once:
                answer = waiting.popleft()
                answer.tally.start()
                rows.append((answer, keys.begin(answer)))
            for answer, logits in rows:
                with _named(answer, several=len(answers) > 1):
                    token = answer.pick(logits)
                if token is not None:
                    yield answer.index, token
            if run.cancelled():
                return
            for answer, _ in rows:
                if answer.ended:
                    keys.end(answer)
            running = [answer for answer, _ in rows if not answer.ended]
            rows = _with_logits(running, keys.step(running)) if running else []


def _with_logits(answers: list[_Answer], logits: Tensor) -> list[tuple[_Answer, Tensor]]:
    return [(answer, logits[i : i + 1]) for i, answer in enumerate(answers)]


@contextmanager
def _named(answer: _Answer, *, several: bool) -> Iterator[None]:
    try:
        yield
    except SelfExtendError as error:
        if several:
            error.add_note(f"It was the answer to question {answer.index + 1} of the batch.")
        raise


class _Keys(ABC):
    """Where the keys of running answers are; a block that ends well has weighed all of them."""

    def __init__(
        self, engine: Engine, run: Run, chunk_size: int | None, prefix: CachedPrefix | None
    ) -> None:
        self.engine, self.run, self.chunk_size, self.prefix = engine, run, chunk_size, prefix
        self._running: list[_Answer] = []

    @property
    def cached(self) -> int:
        """Return the tokens that all prompts begin with, and that have been read."""
        return 0 if self.prefix is None else len(self.prefix)

    @abstractmethod
    def ready(self) -> SelfExtend | None:
        """Return the settings to run under, once nothing speaks against running."""

    @abstractmethod
    def begin(self, answer: _Answer) -> Tensor:
        """Read a prompt and return the logits of the first token to come, ``[1, V]``."""

    @abstractmethod
    def step(self, answers: list[_Answer]) -> Tensor:
        """Run the latest token of each answer and return the logits ``[B, V]``."""

    @abstractmethod
    def holding(self, answer: _Answer) -> AbstractContextManager[object]:
        """Within the block the cache holds all tokens of an answer."""

    @abstractmethod
    def release(self, answer: _Answer, *, sound: bool) -> None:
        """Give up the keys of an answer; they are right if it was ``sound``."""

    def end(self, answer: _Answer, *, sound: bool = True) -> None:
        """Weigh an answer that has ended, and give up its keys."""
        self._running.remove(answer)
        if sound:
            self._weigh(answer, ended=True)
        self.release(answer, sound=sound)

    def _about_to_run(self, answers: Sequence[_Answer]) -> None:
        if self.run.observer is not None:
            self.run.observer.running([answer.index for answer in answers])

    def _weigh(self, answer: _Answer, *, ended: bool) -> None:
        observer = self.run.observer
        if observer is not None and (ended or observer.is_due(answer.index)):
            with self.holding(answer):
                observer.weigh(answer.index, ended=ended)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # Between two tokens, where a consumer leaves off, all that is there is right.
        sound = kind in (None, GeneratorExit, GenerationCancelled)
        for answer in list(self._running):
            self.end(answer, sound=sound)


class OneByOne(_Keys):
    """An answer has a cache to itself: its own, one of an earlier prompt, or the prefix's."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        settings: SelfExtend | None,
        chunk_size: int | None,
        prefix: CachedPrefix | None,
        reuse: PrefixStore | None,
    ) -> None:
        super().__init__(engine, run, chunk_size, prefix)
        self._settings = settings
        self._reuse = reuse if prefix is None else None
        self._state: Hashable = None  # of the model, for the store

    def ready(self) -> SelfExtend | None:
        if self.prefix is not None:
            self.prefix.check_model(self.engine.model)
        return self._settings

    def begin(self, answer: _Answer) -> Tensor:
        self._borrowed = ExitStack()
        self._cache = cache = self._cache_for(answer)
        if self.run.reserve is not None:
            self.run.reserve(cache)
        if self.prefix is not None:
            cache.set_capacity(max(answer.longest, cache.capacity))
            self._cache = cache = self._borrowed.enter_context(self.prefix.borrowed())
        self._running.append(answer)
        self._about_to_run([answer])
        tokens, cached = answer.prompt.tokens, answer.tally.cached_tokens
        logits = self.engine.feed(tokens[cached:], cached, cache, answer.run, self.chunk_size)
        if self._reuse is not None and not has_state(cache):
            start_recording(cache)  # the next prompt may leave off in this answer
        return logits

    def _cache_for(self, answer: _Answer) -> SelfExtendCache:
        """Return a cache of the first ``tally.cached_tokens`` of the prompt."""
        if self.prefix is not None:
            return self.prefix.cache
        engine, tokens = self.engine, answer.prompt.tokens
        new = engine.new_cache(answer.longest)
        step = self.chunk_size or engine.chunk_size
        if 1 < step < len(tokens):
            instead = f"set chunk_size to {len(tokens)} to read it at once"
            refuse_chunks(engine.model, self._settings, instead, self.run.cancelled)
        if self._reuse is None or continuation_reason(
            engine.model, self._settings, self.run.cancelled
        ):
            self._reuse = None
            return new
        found, answer.tally.cached_tokens, self._state = self._reuse.take(
            tokens, self._settings, capacity=answer.longest, blank=engine.blank_cache
        )
        return new if found is None else found

    def step(self, answers: list[_Answer]) -> Tensor:
        (answer,) = answers
        logits = self.engine.forward([answer.tally.tokens[-1:]], self._cache)
        self._weigh(answer, ended=False)
        return logits

    def holding(self, answer: _Answer) -> AbstractContextManager[object]:
        return nullcontext()

    def release(self, answer: _Answer, *, sound: bool) -> None:
        cache = self._cache
        if sound and self._reuse is not None and (length := cache.get_seq_length()):
            tokens = (*answer.prompt.tokens, *answer.tally.tokens)[:length]
            self._reuse.put(tokens, self._settings, cache, self._state)
        self._borrowed.close()


class Together(_Keys):
    """Answers are rows that share the keys of a prefix; each keeps its own behind them."""

    prefix: CachedPrefix

    def ready(self) -> SelfExtend | None:
        self.prefix.check_model(self.engine.model)
        if self.run.reserve is not None:
            self.run.reserve(self.prefix.cache)
        return self.prefix.settings

    def begin(self, answer: _Answer) -> Tensor:
        """Read a prompt as it is read alone, and take its keys out of the prefix again."""
        prompt, shared = answer.prompt, len(self.prefix)
        self._about_to_run([answer])
        with self.prefix.borrowed() as cache:
            logits = self.engine.feed(
                prompt.tokens[shared:], shared, cache, answer.run, self.chunk_size
            )
            answer.row = Row(cache, shared, answer.longest - shared)
        self._running.append(answer)
        return logits

    def step(self, answers: list[_Answer]) -> Tensor:
        self._about_to_run(answers)
        rows = [answer.row for answer in answers if answer.row is not None]
        tokens = [answer.tally.tokens[-1] for answer in answers]
        logits = step(self.engine, rows, tokens, self.prefix)
        for answer in answers:
            self._weigh(answer, ended=False)
        return logits

    def holding(self, answer: _Answer) -> AbstractContextManager[object]:
        assert answer.row is not None
        return behind(self.prefix, answer.row)

    def release(self, answer: _Answer, *, sound: bool) -> None:
        answer.row = None
