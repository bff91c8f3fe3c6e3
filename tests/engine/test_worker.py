"""One owner of a model's work: order, cancellation, and waits that could never end."""

from __future__ import annotations

import threading
import time

import pytest

from selfextend_rag.engine import Job, ModelWorker
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.model import ModelLock
from tests.tiny import byte_tokenizer, tiny_llama


@pytest.fixture
def worker():
    return ModelWorker(ModelLock())


class Busy:
    """A job that runs until it is released."""

    def __init__(self, worker):
        self.begun, self.release = threading.Event(), threading.Event()
        self.job = Job(worker, self._work)
        self.begun.wait(30)

    def _work(self, is_cancelled):
        self.begun.set()
        self.release.wait(30)


def test_jobs_run_in_the_order_in_which_they_came(worker):
    busy, ran = Busy(worker), []
    jobs = [Job(worker, lambda _, n=n: ran.append(n)) for n in range(20)]
    assert ran == []
    busy.release.set()
    for job in jobs:
        job.result()
    assert ran == list(range(20))


def test_a_queued_job_is_stopped_at_once(worker):
    busy = Busy(worker)
    stopped = threading.Event()
    own = Job(worker, lambda is_cancelled: is_cancelled())
    own.close()
    assert own.result() is True
    with_event = Job(worker, lambda is_cancelled: is_cancelled(), stopped)
    threading.Timer(0.05, stopped.set).start()
    assert with_event.result() is True
    assert not busy.job.outcome.done()
    busy.release.set()


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("late"), SystemExit(3)])
def test_what_a_job_raises_is_raised_where_it_is_waited_for(worker, error):
    def fail(_):
        raise error

    with pytest.raises(type(error)) as caught:
        Job(worker, fail, lambda: False).result()
    assert caught.value is error


def test_a_job_can_not_wait_for_one_behind_it(worker):
    found = []

    def outer(_):
        with pytest.raises(RuntimeError, match="a callback of a run can't wait for another run"):
            Job(worker, lambda _: found.append("ran")).result()
        return "continued"

    assert Job(worker, outer).result() == "continued"


def test_a_callback_that_asks_the_same_model_is_refused():
    """It waited for ever, or until somebody noticed."""
    llm = LongContextLLM(tiny_llama(), byte_tokenizer())
    raised = []

    def progress(done, total):
        try:
            llm.generate("Hello", max_new_tokens=2)
        except RuntimeError as error:
            raised.append(str(error))

    begin = time.perf_counter()
    assert llm.generate("Hi", max_new_tokens=2, progress=progress).text
    assert llm.read("The sky.", max_new_tokens=4, progress=progress).ask("Why?") is not None
    assert time.perf_counter() - begin < 60
    assert len(raised) == 2
    assert all("callback" in message for message in raised)


def test_a_stream_that_nobody_takes_blocks_nobody():
    llm = LongContextLLM(tiny_llama(), byte_tokenizer())
    options = {"max_new_tokens": 8, "stop_token_ids": ()}
    expected = llm.generate("Hello", **options).text
    streams = [llm.stream("Hello", **options) for _ in range(3)]
    assert llm.generate("Hello", **options).text == expected
    assert ["".join(stream) for stream in streams] == [expected] * 3
