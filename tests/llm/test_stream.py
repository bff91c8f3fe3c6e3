"""The worker behind a stream: its errors, its end, and what happens when nobody listens."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from selfextend_rag.engine import ModelWorker, Usage
from selfextend_rag.llm.answers import stream as streams
from selfextend_rag.llm.answers.answer import Answer
from selfextend_rag.model import ModelLock
from selfextend_rag.planning import ContextPlan

ANSWER = Answer("ab", "stop", Usage(1, 0, 2, 0.0, 0.0), ContextPlan(1, 2, 0, 64))


def TextStream(work):
    return streams.TextStream(work, ModelWorker(ModelLock()))


def worker_threads():
    """Those that are left, a moment after the last job has ended."""
    threads = [t for t in threading.enumerate() if t.name == "selfextend-rag"]
    for thread in threads:
        thread.join(1)
    return [t for t in threads if t.is_alive()]


def wait_for_the_end(cancelled):
    while not cancelled():
        time.sleep(0.001)


def endless(started, ended):
    """Work that goes on until it is cancelled."""

    def work(put, cancelled):
        try:
            put("a")
            started.set()
            wait_for_the_end(cancelled)
            return ANSWER
        finally:
            ended.set()

    return work


def test_parts_then_the_answer():
    def work(put, cancelled):
        put("a")
        put("b")
        return ANSWER

    stream = TextStream(work)
    assert stream.answer is ANSWER  # waits, and the pieces are still there
    assert list(stream) == ["a", "b"]
    assert list(stream) == []
    assert stream.answer is ANSWER


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3), ValueError("no")])
def test_an_error_in_the_thread_reaches_the_caller(error):
    def work(put, cancelled):
        put("a")
        raise error

    stream = TextStream(work)
    assert next(stream) == "a"
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error
    assert list(stream) == []
    with pytest.raises(type(error)):
        _ = stream.answer


def test_an_error_before_the_first_piece_reaches_the_caller():
    def work(put, cancelled):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(TextStream(work))


def test_closing_ends_the_work_and_waits_for_it():
    started, ended = threading.Event(), threading.Event()
    with TextStream(endless(started, ended)) as stream:
        assert next(stream) == "a"
    assert ended.is_set()
    assert stream.answer is ANSWER
    stream.close()  # again does no harm
    assert not worker_threads()


def test_dropping_the_stream_ends_the_work():
    started, ended = threading.Event(), threading.Event()
    stream = TextStream(endless(started, ended))
    started.wait(30)
    assert not ended.is_set()
    del stream
    assert ended.wait(30)


def test_the_work_may_close_its_own_stream():
    ready = threading.Event()

    def work(put, cancelled):
        ready.wait(30)
        put("a")
        stream.close()
        return ANSWER

    stream = TextStream(work)
    ready.set()
    assert stream.answer is ANSWER


@pytest.mark.slow
def test_a_stream_nobody_closed_does_not_keep_the_program_from_ending():
    program = """
        import time

        from selfextend_rag.engine import ModelWorker
        from selfextend_rag.llm.answers.stream import TextStream
        from selfextend_rag.model import ModelLock

        def work(put, cancelled):
            put("a")
            while not cancelled():
                time.sleep(0.001)
            print("stopped", flush=True)

        stream = TextStream(work, ModelWorker(ModelLock()))
        print(next(stream), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["a", "stopped"]
    assert done.stderr == ""


async def collected(stream):
    return [piece async for piece in stream]


def test_asynchronous_parts_then_the_answer():
    def work(put, cancelled):
        put("a")
        put("b")
        return ANSWER

    async def main():
        async with TextStream(work) as stream:
            assert await stream.aanswer() is ANSWER
            assert await collected(stream) == ["a", "b"]
            assert await collected(stream) == []

    asyncio.run(main())


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("no")])
def test_an_error_in_the_thread_reaches_the_task_that_waits(error):
    go_on = threading.Event()

    def work(put, cancelled):
        put("a")
        go_on.wait(30)
        raise error

    async def main():
        stream = TextStream(work)
        assert await anext(stream) == "a"
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(type(error)) as caught:
            await anext(stream)
        assert caught.value is error
        assert await collected(stream) == []
        with pytest.raises(type(error)):
            await stream.aanswer()

    asyncio.run(main())


def test_one_stream_serves_several_loops_one_after_the_other():
    steps = [threading.Event() for _ in range(3)]

    def work(put, cancelled):
        for number, step in enumerate(steps):
            step.wait(30)
            put(str(number))
        return ANSWER

    stream = TextStream(work)

    async def step(number):
        asyncio.get_running_loop().call_later(0.02, steps[number].set)
        return await anext(stream)

    assert [asyncio.run(step(number)) for number in range(3)] == ["0", "1", "2"]
    assert asyncio.run(stream.aanswer()) is ANSWER


def test_a_loop_that_is_gone_does_not_disturb_the_work():
    go_on = threading.Event()

    def work(put, cancelled):
        go_on.wait(30)
        put("a")
        return ANSWER

    stream = TextStream(work)
    loop = asyncio.new_event_loop()
    waiting = anext(stream)
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0.02))
    loop.close()  # with the task still waiting, as in a program that is broken off
    go_on.set()
    assert stream.answer is ANSWER
    task._log_destroy_pending = False
    del task, waiting
    gc.collect()


@pytest.mark.parametrize("wait_for", [anext, lambda stream: stream.aanswer()])
def test_cancelling_the_task_ends_the_work(wait_for):
    started, ended = threading.Event(), threading.Event()

    async def main():
        stream = TextStream(endless(started, ended))
        assert await anext(stream) == "a"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait_for(stream), 0.05)
        await stream.aclose()
        assert ended.is_set()

    asyncio.run(main())
    assert not worker_threads()


def test_leaving_async_with_ends_the_work():
    started, ended = threading.Event(), threading.Event()

    async def main():
        async with TextStream(endless(started, ended)) as stream:
            assert await anext(stream) == "a"
        assert ended.is_set()
        assert stream.answer is ANSWER

    asyncio.run(main())


def test_threads_that_take_pieces_beside_a_task_leave_none_out():
    def work(put, cancelled):
        for number in range(400):
            put(str(number))
            time.sleep(0.0001)
        return ANSWER

    stream = TextStream(work)
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(stream))
    thread.start()
    taken += asyncio.run(collected(stream))
    thread.join(30)
    assert sorted(map(int, taken)) == list(range(400))


def test_two_hundred_waiting_tasks_take_no_threads():
    """Told by which threads are new: counts also fell as threads of earlier tests ended."""
    go_on = threading.Event()

    def work(put, cancelled):
        put("a")
        go_on.wait(30)
        return ANSWER

    async def main():
        stream = TextStream(work)
        waiting = [asyncio.create_task(stream.aanswer()) for _ in range(200)]
        try:
            await asyncio.sleep(0.05)  # each task starts in the first turn of the loop
            new = set(threading.enumerate()) - before
            assert [thread.name for thread in new] == ["selfextend-rag"]
            assert not any(task.done() for task in waiting)
        finally:
            go_on.set()
        assert await asyncio.gather(*waiting) == [ANSWER] * 200

    before = set(threading.enumerate())
    asyncio.run(main())
