"""Several answers at a time from one prefix, whose keys are held once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from selfextend_rag.cache import Row, RowsCache
from selfextend_rag.engine.constraint import TokenConstraint
from selfextend_rag.engine.engine import (
    Cancelled,
    Claim,
    Engine,
    Progress,
    as_function,
    extension_of,
)
from selfextend_rag.engine.generation import FinishReason, Tally, Usage
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.sampling import Sampler
from selfextend_rag.engine.settings import GenerationSettings
from selfextend_rag.errors import GenerationCancelled, SelfExtendError
from selfextend_rag.model import by_rows, switched, turn_of


@dataclass(frozen=True, slots=True)
class BatchPrompt:
    """One prompt of a batch.

    Args:
        tokens: the whole prompt, the prefix included.
        settings: length, sampling and stop tokens of its answer.
        constraint: what its answer is held to; a fresh one, used up by it.
    """

    tokens: tuple[int, ...]
    settings: GenerationSettings
    constraint: TokenConstraint | None = None


class BatchGeneration(Iterator[tuple[int, int]]):
    """Pairs of a prompt's index and the next token of its answer, as they are generated.

    Each question is read alone, as `Engine.generate` reads it; then all rows take each step
    together. A row that ends makes room for the next prompt. Nothing runs before the first token is
    asked for, and the prefix is left as it was found, however it ends.

    Leaving off early needs ``close()``, or a ``with`` block.

    Args:
        engine: the model; `engine.rows.objection` says whether it can do this.
        prompts: each begins with the prefix and goes on.
        prefix: what has been read before.
        at_once: the most rows at a time; bounds the memory.
        chunk_size: tokens of a question to run at once; those of the engine by default.
        progress: called with the tokens of the questions read so far and of all.
        cancelled: looked at between chunks and steps; ends all answers.
        claim: called before anything runs, with the prefix's cache; what it raises ends the batch.

    Raises:
        CacheMismatchError: a prompt does not begin with the prefix, or ends with it.
        ValueError: ``at_once`` is not positive.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[BatchPrompt],
        prefix: CachedPrefix,
        *,
        at_once: int = 16,
        chunk_size: int | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        claim: Claim | None = None,
    ) -> None:
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        for prompt in prompts:
            extension_of(prefix, prompt.tokens, None)
        self._answers = [_Answer(engine, i, x, len(prefix)) for i, x in enumerate(prompts)]
        told = _Told(sum(len(x.tokens) - len(prefix) for x in prompts), progress)
        batch = _Batch(engine, prefix, at_once, chunk_size, told, as_function(cancelled), claim)
        self._tokens = batch.run(self._answers)

    def __next__(self) -> tuple[int, int]:
        return next(self._tokens)

    def stop(self, index: int) -> None:
        """End one answer here; the others go on."""
        self._answers[index].end("cancelled")

    def close(self) -> None:
        """End all answers here and free the model."""
        self._tokens.close()
        for answer in self._answers:
            answer.end("cancelled")

    def __enter__(self) -> BatchGeneration:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def finish_reason(self, index: int) -> FinishReason | None:
        """Return how an answer ended; None before its end."""
        return self._answers[index].tally.finish_reason

    def usage(self, index: int) -> Usage:
        """Return what an answer cost so far; its steps are shared with the other rows."""
        answer = self._answers[index]
        return answer.tally.usage(len(answer.prompt.tokens))


class _Answer:
    """One answer of a batch: before its turn, as a row, and at its end."""

    def __init__(self, engine: Engine, index: int, prompt: BatchPrompt, cached: int) -> None:
        self.index, self.prompt = index, prompt
        self.tally = Tally()
        self.tally.cached_tokens = cached
        self.row: Row | None = None
        self._sampler: Sampler | None = None
        ends = prompt.settings.stop_token_ids
        self._ends = engine.end_tokens() if ends is None else ends

    @property
    def ended(self) -> bool:
        return self.tally.finish_reason is not None

    def end(self, reason: FinishReason) -> None:
        """Note how it ended, if it has not ended before, and let go of its keys."""
        if not self.ended:
            self.tally.finish(reason)
        self.row = self._sampler = None

    def pick(self, logits: Tensor) -> int | None:
        """Return the next token for logits ``[1, V]``; None if it ends the answer."""
        prompt = self.prompt
        if self._sampler is None:
            self._sampler = Sampler(
                prompt.settings, prompt.tokens, logits.device, prompt.constraint
            )
        try:
            token = self._sampler.pick(logits)
        except SelfExtendError as error:
            error.add_note(f"It was the answer to question {self.index + 1} of the batch.")
            raise
        self.tally.tick()
        if token in self._ends:
            self.end("stop")
            return None
        self.tally.tokens.append(token)
        if prompt.constraint is not None and prompt.constraint.finished:
            self.end("stop")
        elif len(self.tally.tokens) == prompt.settings.max_new_tokens:
            self.end("length")
        return token


class _Told:
    """Counts the questions' tokens that have been read, and tells who wants to know."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._before = 0

    def question(self, prompt: BatchPrompt, cached: int) -> Progress | None:
        """Return what to call while one question is read."""
        progress, before = self._progress, self._before - cached
        self._before += len(prompt.tokens) - cached
        if progress is None:
            return None
        return lambda done, _: progress(before + done, self._total)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What all answers of a batch have in common."""

    engine: Engine
    prefix: CachedPrefix
    at_once: int
    chunk_size: int | None
    told: _Told
    is_cancelled: Callable[[], bool]
    claim: Claim | None

    def run(self, answers: list[_Answer]) -> Generator[tuple[int, int], None, None]:
        """Wait for the model, set it up, answer, and put everything back."""
        model = self.engine.model
        try:
            with turn_of(model).hold(self.is_cancelled) as held:
                if held:
                    self.prefix.check_model(model)
                    if self.claim is not None:
                        self.claim(self.prefix.cache)
                    with switched(model, self.prefix.extension):
                        yield from self._steps(answers)
        except GenerationCancelled:
            pass  # the reasons say it
        finally:
            for answer in answers:
                answer.end("cancelled")

    def _steps(self, answers: list[_Answer]) -> Iterator[tuple[int, int]]:
        waiting = deque(answers)
        rows: list[tuple[_Answer, Tensor]] = []  # who goes on, and the logits for his next token
        while waiting or rows:
            while waiting and len(rows) < self.at_once:
                rows.append(self._begun(waiting.popleft()))
            for answer, logits in rows:
                token = answer.pick(logits)
                if token is not None:
                    yield answer.index, token
            going_on = [answer for answer, _ in rows if not answer.ended]
            if self.is_cancelled():
                return
            rows = self._stepped(going_on) if going_on else []

    def _begun(self, answer: _Answer) -> tuple[_Answer, Tensor]:
        """Read a question as it is read alone, and take its keys out of the prefix again."""
        prompt, shared = answer.prompt, len(self.prefix)
        answer.tally.start()
        with self.prefix.lent() as cache:
            logits = self.engine.feed(
                prompt.tokens[shared:],
                shared,
                cache,
                self.told.question(prompt, shared),
                self.is_cancelled,
                self.chunk_size,
            )
            room = len(prompt.tokens) - shared + prompt.settings.max_new_tokens
            answer.row = Row(cache, shared, room)
        return answer, logits

    def _stepped(self, answers: list[_Answer]) -> list[tuple[_Answer, Tensor]]:
        """Run the latest token of each answer, all at once."""
        rows = [answer.row for answer in answers if answer.row is not None]
        tokens = [answer.tally.tokens[-1] for answer in answers]
        logits = step(self.engine, rows, tokens, self.prefix)
        return [(answer, logits[i : i + 1]) for i, answer in enumerate(answers)]


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
