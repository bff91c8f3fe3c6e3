"""The thread behind a stream: its errors, its end, and what happens when nobody listens."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest

from selfextend_rag.engine import Usage
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.planning import ContextPlan

ANSWER = Answer("ab", "stop", Usage(1, 0, 2, 0.0, 0.0), ContextPlan(1, 2, 0, 64))


def worker_threads():
    return [t for t in threading.enumerate() if t.name == "selfextend-rag"]


def endless(started, ended):
    """Work that goes on until it is cancelled."""

    def work(cancelled):
        try:
            yield "a"
            started.set()
            cancelled.wait()
            return ANSWER
        finally:
            ended.set()

    return work


def test_pieces_then_the_answer():
    def work(cancelled):
        yield "a"
        yield "b"
        return ANSWER

    stream = TextStream(work)
    assert stream.answer is ANSWER  # waits, and the pieces are still there
    assert list(stream) == ["a", "b"]
    assert list(stream) == []
    assert stream.answer is ANSWER


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(3), ValueError("no")])
def test_an_error_in_the_thread_reaches_the_caller(error):
    def work(cancelled):
        yield "a"
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
    def work(cancelled):
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
    def work(cancelled):
        yield "a"
        stream.close()
        return ANSWER

    ready = threading.Event()

    def start(cancelled):
        ready.wait(30)
        return work(cancelled)

    def later(cancelled):
        return (yield from start(cancelled))

    stream = TextStream(later)
    ready.set()
    assert stream.answer is ANSWER


def test_a_stream_nobody_closed_does_not_keep_the_program_from_ending():
    program = """
        from selfextend_rag.llm.stream import TextStream

        def work(cancelled):
            yield "a"
            cancelled.wait()
            print("told to end", flush=True)

        stream = TextStream(work)
        print(next(stream), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["a", "told to end"]
    assert done.stderr == ""
