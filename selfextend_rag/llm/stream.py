"""Text while the model's worker generates it, and the answer when it is whole."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from selfextend_rag.engine import Cancelled, FinishReason, Job, ModelWorker, Usage
from selfextend_rag.evidence import Evidence
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.messages import ToolCall

AnswerReason = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it took.

    Args:
        text: the answer; the parts of its stream, joined.
        finish_reason: ``"stop"`` at its own end or a stop text, ``"length"`` when
            ``max_new_tokens`` were not enough, ``"cancelled"``, or ``"tool_calls"`` when it ends
            in calls. JSON and calls are whole after ``"stop"`` and ``"tool_calls"`` alone.
        usage: tokens and seconds.
        plan: the settings it ran under.
        tool_calls: the calls it asks for, each one whole and valid for its tool's schema.
        unfinished_call: the text of a call that was cut off, which is none of ``tool_calls``.
        evidence: passages of the documents that the model looked at while it answered, those it
            looked at most first; empty without documents, or if it was not asked for.
    """

    text: str
    finish_reason: AnswerReason
    usage: Usage
    plan: ContextPlan
    tool_calls: tuple[ToolCall, ...] = ()
    unfinished_call: str = ""
    evidence: tuple[Evidence, ...] = ()

    @property
    def complete(self) -> bool:
        """Return whether the answer came to its own end, and was not cut off."""
        return self.finish_reason in ("stop", "tool_calls")

    def to_dict(self) -> dict[str, object]:
        """Return the answer as JSON values."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "plan": self.plan.to_dict(),
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "unfinished_call": self.unfinished_call,
            "evidence": [passage.to_dict() for passage in self.evidence],
        }


Work = Callable[[Callable[[], bool]], Generator[str, None, Answer]]
"""Yields text and returns the answer; ends early once the function that it is given says so."""


class TextStream(Iterator[str], AsyncIterator[str]):
    """Text as it comes, in parts that never end within a character or a stop text.

    The model's worker generates the answer, whether or not the text is taken. What goes wrong there
    is raised here, by the next part or by ``answer``. There is no time limit: a long prefill
    simply takes long. Closing the stream, leaving its ``with`` block or dropping it ends the work
    between two chunks or tokens, and at once if it has not begun.

    ``async for``, ``await aanswer()``, ``await aclose()`` and ``async with`` do the same while the
    event loop stays free. A task that is cancelled while it waits here ends the work, as it ends an
    asynchronous generator.

    Args:
        work: generates the answer.
        worker: of the model.
        cancelled: the caller's own way to end it.
    """

    def __init__(self, work: Work, worker: ModelWorker, cancelled: Cancelled = None) -> None:
        self._parts = parts = _Parts()
        # The job does not refer to the stream, so that a stream nobody holds is noticed.
        self._job = Job(worker, lambda is_cancelled: parts.collect(work, is_cancelled), cancelled)
        weakref.finalize(self, self._job.stopped.set).atexit = False
        self._reported = False

    def __next__(self) -> str:
        coming = self._parts.take()
        try:
            part = self._job.wait_for(coming)
        except BaseException:
            coming.cancel()  # the part is left to the next one who asks
            raise
        if part is None:
            self._raise_once()
            raise StopIteration
        return part

    async def __anext__(self) -> str:
        part = await self._job.await_for(self._parts.take())
        if part is None:
            self._raise_once()
            raise StopAsyncIteration
        return part

    @property
    def answer(self) -> Answer:
        """Return the whole answer, waiting for its end; the text can still be taken.

        Raises:
            Exception: what ended the work, if it failed.
        """
        return self._job.wait_for(self._job.outcome)

    async def aanswer(self) -> Answer:
        """Return ``answer`` once it is there."""
        return await self._job.aresult()

    def close(self) -> None:
        """End the work and wait until the model is free; ``answer`` has what there is."""
        self._job.close()

    async def aclose(self) -> None:
        """Do as ``close``; the wait may be cancelled, the end of the work may not."""
        self._job.stop()
        await self._job.await_for(self._parts.ended)

    def _raise_once(self) -> None:
        error = self._job.outcome.exception()
        if error is not None and not self._reported:
            self._reported = True
            raise error

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class _Parts:
    """Text between the worker's thread and those who take it, threads and tasks alike."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # one that waits can't cancel it for others
        self._lock = threading.Lock()
        self._ready: deque[str] = deque()
        self._waiting: deque[Future[str | None]] = deque()

    def collect(self, work: Work, is_cancelled: Callable[[], bool]) -> Answer:
        """Put all parts here and return the answer."""
        try:
            parts = work(is_cancelled)
            while True:
                try:
                    self._put(next(parts))
                except StopIteration as end:
                    answer: Answer = end.value
                    return answer
        finally:
            self._end()

    def take(self) -> Future[str | None]:
        """Return what will be the next part; None at the end."""
        coming: Future[str | None] = Future()
        with self._lock:
            if self._ready:
                coming.set_result(self._ready.popleft())
            elif self.ended.done():
                coming.set_result(None)
            else:
                self._waiting.append(coming)
        return coming

    def _put(self, part: str) -> None:
        with self._lock:
            while self._waiting:
                coming = self._waiting.popleft()
                if coming.set_running_or_notify_cancel():
                    coming.set_result(part)
                    return
            self._ready.append(part)

    def _end(self) -> None:
        with self._lock:
            self.ended.set_result(None)
            for coming in self._waiting:
                if coming.set_running_or_notify_cancel():
                    coming.set_result(None)
            self._waiting.clear()
