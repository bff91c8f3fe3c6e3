"""An answer's text as it comes, to threads and to tasks."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

from selfextend_rag.engine import Cancelled, Job, Worker
from selfextend_rag.llm.answers.answer import Answer

Work = Callable[[Callable[[str], None], Callable[[], bool]], Answer]
"""Is given what takes text and what says to end early; returns the answer."""


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
        worker: of the model, or of the server.
        cancelled: the caller's own way to end it.
    """

    def __init__(self, work: Work, worker: Worker, cancelled: Cancelled = None) -> None:
        self._parts = parts = _Parts()
        # The job does not refer to the stream, so that a stream nobody holds is noticed.
        self._job = Job(worker, lambda is_cancelled: parts.collect(work, is_cancelled), cancelled)
        weakref.finalize(self, self._job.stopped.set).atexit = False
        self._reported = False

    def __next__(self) -> str:
        coming = self._parts.take()
        try:
            part = self._job.wait_for(coming)
        except BaseException:  # raised again
            coming.cancel()  # the part is left to the next caller
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
        try:
            return self._job.wait_for(self._job.outcome)
        finally:
            del self  # as in Job.run

    def finish(self) -> Answer:
        """Return ``answer``, and close the stream if it can't be had."""
        try:
            with self:
                return self.answer
        finally:
            del self  # as in Job.run

    async def aanswer(self) -> Answer:
        """Return ``answer`` once it is there."""
        return await self._job.await_for(self._job.outcome)

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
        """Take all text of the work and return its answer."""
        try:
            return work(self._put, is_cancelled)
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
