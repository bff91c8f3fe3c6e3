"""The calls of `LongContextLLM` for programs with an event loop, which stays free."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from selfextend_rag.llm.budget import Documents
from selfextend_rag.llm.reading import Reading
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.llm.waiters import Waiters
from selfextend_rag.text.messages import Message

_T = TypeVar("_T")


class _Blocking(Protocol):
    @property
    def read(self) -> Callable[..., Reading]: ...
    @property
    def stream(self) -> Callable[..., TextStream]: ...


class AsyncCalls:
    """``aread``, ``astream`` and ``agenerate``; they take what ``read`` and ``stream`` take.

    A task that is cancelled while it waits ends the work between two chunks or tokens.
    """

    async def aread(self: _Blocking, documents: Documents, **options: Any) -> Reading:
        """Do as ``read``, in a thread of its own; ``cancelled`` may be given as an event alone."""
        cancelled = options.pop("cancelled", None) or threading.Event()
        return await in_thread(
            lambda: self.read(documents, cancelled=cancelled, **options), cancelled
        )

    async def astream(
        self: _Blocking, prompt: str | Sequence[Message], **options: Any
    ) -> TextStream:
        """Do as ``stream``; tokenizing a long prompt takes a moment, so that is awaited too."""
        return await in_thread(lambda: self.stream(prompt, **options))

    async def agenerate(self: _Blocking, prompt: str | Sequence[Message], **options: Any) -> Answer:
        """Do as ``generate``."""
        stream = await in_thread(lambda: self.stream(prompt, **options))
        async with stream:
            return await stream.aanswer()


async def in_thread(work: Callable[[], _T], cancelled: threading.Event | None = None) -> _T:
    """Run work in a thread of its own and wait for it, with the event loop free.

    Not in the loop's pool: a reading may take minutes, and a few of them would fill it.

    Args:
        work: what to do; what it raises is raised here.
        cancelled: set when the task that waits is cancelled; the thread is not waited for then.
    """
    outcome: Future[_T] = Future()
    waiters = Waiters()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised in the task that waits
            outcome.set_exception(error)
        waiters.wake()

    threading.Thread(target=run, name="selfextend-rag-call").start()
    try:
        await waiters.until(outcome.done)
    except asyncio.CancelledError:
        if cancelled is not None:
            cancelled.set()
        raise
    return outcome.result()
