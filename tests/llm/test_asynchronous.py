"""Calls from an event loop: the same answers, the loop free, cancellation ends the work."""

from __future__ import annotations

import asyncio
import threading

import pytest

from selfextend_rag.errors import ContextBudgetExceeded, GenerationCancelled


def test_awaited_calls_give_what_blocking_ones_give(llm):
    document, question = "abc " * 30, "who?"
    reading = llm.read(document, max_new_tokens=4)
    expected = reading.ask(question).text, llm.generate("abc", max_new_tokens=5).text

    async def main():
        read = await llm.aread(document, max_new_tokens=4)
        stream = await llm.astream("abc", max_new_tokens=5)
        pieces = "".join([piece async for piece in stream])
        answer = await llm.agenerate("abc", max_new_tokens=5)
        assert pieces == answer.text
        return (await read.stream(question).aanswer()).text, pieces

    assert asyncio.run(main()) == expected


def test_what_goes_wrong_is_raised_where_it_is_awaited(llm):
    async def main():
        with pytest.raises(ContextBudgetExceeded):
            await llm.aread("abc " * 100_000)
        with pytest.raises(ContextBudgetExceeded):
            await llm.astream("abc " * 100_000)
        with pytest.raises(ValueError, match="the prompt is empty"):
            await llm.agenerate("")

    asyncio.run(main())


def test_cancelling_the_task_ends_the_reading_between_two_chunks(llm):
    first, seen = threading.Event(), []

    def progress(done, total):
        seen.append(done)
        first.set()
        go_on.wait(30)

    async def main():
        task = asyncio.create_task(llm.aread("abc " * 60, progress=progress))
        while not first.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    go_on = threading.Event()
    asyncio.run(main())
    llm.generate("a", max_new_tokens=1)  # waits for its turn, so the reading is over
    assert len(seen) == 1


def test_an_event_of_ones_own_ends_the_reading(llm):
    cancelled = threading.Event()
    cancelled.set()

    async def main():
        with pytest.raises(GenerationCancelled):
            await llm.aread("abc " * 60, cancelled=cancelled)

    asyncio.run(main())
