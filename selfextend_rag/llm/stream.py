"""Text while it is generated, from a thread of its own, and the answer when it is whole."""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from selfextend_rag.engine import FinishReason, Usage
from selfextend_rag.evidence import Evidence
from selfextend_rag.llm.waiters import Waiters
from selfextend_rag.model import waiting_for
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.tools import ToolCall

AnswerReason = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it took.

    Args:
        text: the answer; the pieces of its stream, joined.
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

    def to_dict(self) -> dict[str, Any]:
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


Work = Callable[[threading.Event], Generator[str, None, Answer]]
"""Yields pieces and returns the answer; ends early, and well, once the event is set."""


class TextStream(Iterator[str], AsyncIterator[str]):
    """Pieces of text as they come; they never end within a character or a stop text.

    The work runs in a thread from the start, whether or not the pieces are taken. What goes wrong
    there is raised here, by the next piece or by ``answer``. There is no time limit: a long prefill
    simply takes long. Closing the stream, leaving its ``with`` block or dropping it ends the work
    between two chunks or tokens.

    ``async for``, ``await aanswer()``, ``await aclose()`` and ``async with`` do the same while the
    event loop stays free. A task that is cancelled while it waits here ends the work, as it ends an
    asynchronous generator.
    """

    def __init__(self, work: Work) -> None:
        self._worker = _Worker(work)
        weakref.finalize(self, self._worker.cancelled.set).atexit = False
        self._worker.start()

    def __next__(self) -> str:
        with waiting_for(self._worker.thread):
            piece = self._worker.pieces.get()
        if piece is None:
            self._worker.at_end()
            raise StopIteration
        return piece

    async def __anext__(self) -> str:
        while True:
            await self._until(lambda: not self._worker.pieces.empty())
            try:
                piece = self._worker.pieces.get_nowait()
            except queue.Empty:  # somebody else took it
                continue
            if piece is None:
                self._worker.at_end()
                raise StopAsyncIteration
            return piece

    @property
    def answer(self) -> Answer:
        """Return the whole answer, waiting for its end; the pieces can still be taken.

        Raises:
            Exception: what ended the work, if it failed.
        """
        with waiting_for(self._worker.thread):
            self._worker.ended.wait()
        if self._worker.answer is None:
            assert self._worker.error is not None
            raise self._worker.error
        return self._worker.answer

    async def aanswer(self) -> Answer:
        """Return ``answer`` once it is there."""
        await self._until(self._worker.ended.is_set)
        return self.answer

    def close(self) -> None:
        """End the work and wait until the model is free; ``answer`` has what there is."""
        self._worker.stop()

    async def aclose(self) -> None:
        """Do as ``close``; the wait may be cancelled, the end of the work may not."""
        self._worker.cancelled.set()
        await self._until(self._worker.ended.is_set)

    async def _until(self, ready: Callable[[], bool]) -> None:
        try:
            await self._worker.waiters.until(ready)
        except asyncio.CancelledError:
            self._worker.cancelled.set()
            raise

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class _Worker:
    """The thread and what it shares with the stream; it does not know the stream."""

    def __init__(self, work: Work) -> None:
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self.pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.waiters = Waiters()
        self._reported = False
        self._work: Work | None = work
        # A daemon, or a stream that nobody closed would keep the program from ending; it is told
        # to end at exit instead, because torch must not be torn down under it.
        self.thread = threading.Thread(target=self._run, name="selfextend-rag", daemon=True)

    def start(self) -> None:
        _stop_running_at_exit()
        _running.add(self)
        self.thread.start()

    def stop(self) -> None:
        self.cancelled.set()
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def at_end(self) -> None:
        """Leave the end in place for who asks again, and raise what went wrong, once."""
        self.pieces.put(None)
        if self.error is not None and not self._reported:
            self._reported = True
            raise self.error

    def _run(self) -> None:
        try:
            assert self._work is not None
            self.answer = self._collect(self._work(self.cancelled))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that reads
            self.error = error
        finally:
            self._work = None
            _running.discard(self)
            self.ended.set()
            self.pieces.put(None)
            self.waiters.wake()

    def _collect(self, pieces: Generator[str, None, Answer]) -> Answer:
        while True:
            try:
                self.pieces.put(next(pieces))
            except StopIteration as end:
                return end.value
            self.waiters.wake()


_running: set[_Worker] = set()


@cache
def _stop_running_at_exit() -> None:
    def stop_all() -> None:
        for worker in tuple(_running):
            worker.stop()

    atexit.register(stop_all)
