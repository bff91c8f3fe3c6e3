"""Readings that are kept: each set of documents is read once, and memory is bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
import torch

from selfextend_rag.errors import (
    CacheMismatchError,
    ContextBudgetExceeded,
    GenerationCancelled,
    MemoryBudgetExceeded,
)
from selfextend_rag.llm import KeptReadings, LongContextLLM
from tests.tiny import byte_tokenizer, tiny_llama

ONE, OTHER = "one " * 20, "other " * 20


@pytest.fixture
def count_reads(llm, monkeypatch):
    reads = []
    read = llm.read

    def counted(*args, **options):
        reads.append(options)
        return read(*args, **options)

    monkeypatch.setattr(llm, "read", counted)
    return reads


def test_documents_are_read_once_whatever_is_asked(llm, count_reads):
    kept = KeptReadings(llm)
    reading = kept.get(ONE, "who?", max_new_tokens=4)
    assert kept.get([ONE], "and who else?", max_new_tokens=2) is reading
    assert asyncio.run(kept.aget(ONE, "why?", max_new_tokens=4)) is reading
    assert kept.get(OTHER) is not reading
    assert len(count_reads) == 2
    assert kept.nbytes == reading.nbytes + kept.get(OTHER).nbytes


def test_the_reading_asked_for_longest_ago_goes_first(llm, count_reads):
    kept = KeptReadings(llm)
    first, second = kept.get(ONE), kept.get(OTHER)
    kept = KeptReadings(llm, max_bytes=first.nbytes + second.nbytes)
    first, second = kept.get(ONE), kept.get(OTHER)
    assert kept.get(ONE) is first
    kept.get("third " * 15)
    assert kept.nbytes <= kept.max_bytes
    assert kept.get(ONE) is first
    assert kept.get(OTHER) is not second


def test_what_other_weights_read_is_read_again():
    """Every question to those documents was refused, and nobody could have them read again."""
    llm = LongContextLLM(tiny_llama(window=128), byte_tokenizer())
    kept = KeptReadings(llm)
    before = kept.get(ONE)
    with torch.no_grad():
        llm.model.lm_head.weight.mul_(2)
    reading = kept.get(ONE)
    assert reading is not before
    assert kept.get(ONE) is reading
    assert reading.ask("who?", max_new_tokens=1).usage.cached_tokens > 0


def test_a_reading_larger_than_the_bytes_is_handed_out_and_not_kept(llm):
    kept = KeptReadings(llm, max_bytes=10)
    assert kept.get(ONE).ask("who?", max_new_tokens=1).text is not None
    assert kept.nbytes == 0
    with pytest.raises(ValueError, match="max_bytes must be 0 or a positive number, got -1"):
        KeptReadings(llm, max_bytes=-1)


def test_a_long_question_makes_room_once_with_some_to_spare(llm, count_reads):
    kept = KeptReadings(llm)
    small = kept.get(ONE, "who?", max_new_tokens=4)
    long = "who? " * 40
    reading = kept.get(ONE, long, max_new_tokens=4)
    assert reading is not small
    assert kept.get(ONE, long + "and who else?", max_new_tokens=4) is reading
    assert reading.ask(long, max_new_tokens=4).usage.cached_tokens > 0
    assert len(count_reads) == 2


def test_a_question_that_fits_barely_gets_the_room_it_needs(llm):
    kept = KeptReadings(llm)
    room = llm.planner.extended_window - len(ONE) - 60
    question = "q" * (room - 4)
    assert kept.get(ONE, question, max_new_tokens=4).ask(question, max_new_tokens=4)
    with pytest.raises(ContextBudgetExceeded):
        kept.get(ONE, question * 2, max_new_tokens=4)


def test_who_comes_while_documents_are_read_waits_for_that_reading(llm, count_reads):
    kept = KeptReadings(llm)
    go_on = threading.Event()
    results = []

    def get():
        results.append(kept.get(ONE, progress=lambda done, total: go_on.wait(30)))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(count_reads) == 1
    assert len(set(map(id, results))) == 1
    assert not kept._reading


def test_who_waits_may_leave_and_the_next_one_reads_after_a_cancelled_reading(llm):
    kept = KeptReadings(llm)
    go_on, cancelled = threading.Event(), threading.Event()
    outcomes = {}

    def get(name, **options):
        try:
            outcomes[name] = kept.get(ONE * 4, **options)
        except GenerationCancelled as error:
            outcomes[name] = error

    reader = threading.Thread(
        target=get, args=("reader",),
        kwargs={"cancelled": cancelled, "progress": lambda done, total: go_on.wait(30)},
    )  # fmt: skip
    reader.start()
    time.sleep(0.1)
    left = threading.Event()
    left.set()
    get("left", cancelled=left)
    assert isinstance(outcomes["left"], GenerationCancelled)
    next_one = threading.Thread(target=get, args=("next",))
    next_one.start()
    cancelled.set()
    go_on.set()
    reader.join(60)
    next_one.join(60)
    assert isinstance(outcomes["reader"], GenerationCancelled)
    assert outcomes["next"].nbytes == kept.nbytes > 0


def test_cancelling_the_task_ends_the_reading(llm):
    kept = KeptReadings(llm)
    started, go_on = threading.Event(), threading.Event()

    def progress(done, total):
        started.set()
        go_on.wait(30)

    async def main():
        task = asyncio.create_task(kept.aget(ONE * 4, progress=progress))
        while not started.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert kept.get(ONE * 4)  # waits for the turn of the broken off one
    kept.clear()
    assert kept.nbytes == 0


@pytest.mark.parametrize("question", ["", "who?", "who? " * 12, "who? " * 24])
def test_a_plan_is_that_of_the_reading_that_is_made(llm, question):
    """The last question leaves no space for twice its tokens."""
    planned = KeptReadings(llm).plan(ONE, question, max_new_tokens=4)
    kept = KeptReadings(llm)
    reading = kept.get(ONE, question, max_new_tokens=4)
    assert replace(planned, memory=None) == replace(reading.plan, memory=None)
    assert kept.plan(ONE, max_new_tokens=2) is reading.plan  # which is kept


def test_a_plan_that_fits_no_window_is_refused_and_nothing_is_read(llm, count_reads):
    kept = KeptReadings(llm)
    with pytest.raises(ContextBudgetExceeded):
        kept.plan("word " * 4000, "who?")
    assert not count_reads


def test_where_other_readings_go_first_a_plan_says_nothing_of_memory():
    model = tiny_llama(window=128)  # of its own: what others hold for a model counts
    whole = LongContextLLM(model, byte_tokenizer(), chunk_size=50).plan(OTHER, max_new_tokens=4)
    limit = whole.memory.needed_bytes
    llm = LongContextLLM(model, byte_tokenizer(), chunk_size=50, memory_limit=limit)
    kept = KeptReadings(llm)
    kept.get(ONE[:40], max_new_tokens=4)
    with pytest.raises(MemoryBudgetExceeded):
        llm.plan(OTHER, max_new_tokens=4)
    assert kept.plan(OTHER, max_new_tokens=4) == replace(whole, memory=None, chunk_size=None)


def test_what_is_found_refuses_a_model_that_has_changed_and_get_reads_again():
    llm = LongContextLLM(tiny_llama(window=128), byte_tokenizer())
    kept = KeptReadings(llm)
    found = kept.get(ONE)
    with torch.no_grad():
        next(llm.model.parameters()).mul_(2)
    assert kept.find(ONE) is found
    with pytest.raises(CacheMismatchError, match="have changed since"):
        found.ask("who?")
    assert kept.get(ONE) is not found
