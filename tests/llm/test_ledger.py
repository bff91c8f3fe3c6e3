"""What a model holds counts: nothing runs that memory has no room for beside it."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfextend_rag import (
    ContextBudgetExceeded,
    Document,
    LongContextLLM,
    MemoryBudgetExceeded,
)
from selfextend_rag.cache import SelfExtendCache, persist
from selfextend_rag.llm import devices
from selfextend_rag.llm.library import KeptReadings
from selfextend_rag.planning import DeviceMemory
from tests.tiny import byte_tokenizer, tiny_llama

LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))
FREE = {"max_new_tokens": 6, "stop": (), "stop_token_ids": ()}
SHORT = "Why?"


@pytest.fixture
def model():
    """One for each test: what another test has not released yet would count."""
    return tiny_llama(window=128, num_hidden_layers=8, dtype=torch.float32)


def make(model, limit=None, **options):
    return LongContextLLM(model, byte_tokenizer(), chunk_size=64, memory_limit=limit, **options)


@pytest.fixture
def needed(model):
    """Bytes that reading LONG takes at most."""
    return make(model, prefix_cache_bytes=0).plan(LONG).memory.needed_bytes


def held_by(llm, *readings):
    weights = llm.plan("x").memory.weights_bytes
    kept = 0 if llm.prefix_cache is None else llm.prefix_cache.nbytes
    return weights + kept + sum(reading.nbytes for reading in readings)


def test_a_second_reading_is_refused_while_the_first_takes_its_memory(model, needed):
    llm = make(model, needed + 1000, prefix_cache_bytes=0)
    reading = llm.read(LONG)
    assert reading.ask(SHORT, **FREE).text
    with pytest.raises(MemoryBudgetExceeded):
        llm.read(f"Other. {LONG}")
    assert reading.ask(SHORT, **FREE).text
    del reading
    gc.collect()
    assert llm.read(f"Other. {LONG}"[: len(LONG)]).ask(SHORT, **FREE).text


def test_kept_prompts_are_evicted_for_what_runs(model, needed):
    llm = make(model, needed + 500_000)
    llm.generate(LONG[:150], **FREE)
    llm.generate(f"Other {LONG[:150]}", **FREE)
    kept = llm.prefix_cache.nbytes
    assert len(llm.prefix_cache) == 2
    reading = llm.read(LONG)
    assert llm.prefix_cache.nbytes < kept
    assert held_by(llm, reading) <= needed + 500_000
    assert reading.ask(SHORT, **FREE).text


def test_kept_prompts_stay_where_there_is_room(model):
    llm = make(model)
    llm.generate(LONG[:150], **FREE)
    llm.read(LONG)
    assert len(llm.prefix_cache) == 1


@pytest.mark.parametrize("kv_bits", [None, 4])
def test_a_reading_too_large_to_load_is_refused_before_it_is_read(
    model, tmp_path, monkeypatch, kv_bits
):
    make(model, prefix_cache_bytes=0, kv_bits=kv_bits).read(LONG).save(tmp_path / "kept")
    small = make(model, "1MiB", prefix_cache_bytes=0, kv_bits=kv_bits)
    monkeypatch.setattr(persist, "load", None)
    with pytest.raises(MemoryBudgetExceeded) as refused:
        small.load(tmp_path / "kept")
    words = str(refused.value)
    for part in ("kept is a reading of", "to be loaded and asked, and it has 1 MiB", "kv_bits=8"):
        assert part in words


def test_a_loaded_reading_is_planned_for_this_machine(model, needed, tmp_path):
    make(model, prefix_cache_bytes=0).read(LONG).save(tmp_path / "kept")
    llm = make(model, needed + 1000, prefix_cache_bytes=0)
    loaded = llm.load(tmp_path / "kept")
    assert loaded.plan.memory.devices[0].available_bytes == needed + 1000
    with pytest.raises(MemoryBudgetExceeded):
        llm.load(tmp_path / "kept")
    assert loaded.ask(SHORT, **FREE).text


def test_a_question_beyond_the_planned_room_needs_memory_for_it(model, needed):
    llm = make(model, needed, prefix_cache_bytes=0)
    reading = llm.read(LONG)
    held = reading.nbytes
    room = reading.plan.extended_window - reading.plan.prompt_tokens
    with pytest.raises(MemoryBudgetExceeded, match=r"it lacks .*; release other readings or ask"):
        reading.ask("x" * 30, max_new_tokens=room - 60)
    assert reading.nbytes <= held + reading.plan.memory.grouped_keys_bytes
    assert reading.ask(SHORT, **FREE).text
    roomy = make(model, prefix_cache_bytes=0).read(LONG)
    answer = roomy.ask("x" * 30, max_new_tokens=room - 60, stop=(), stop_token_ids=())
    assert answer.usage.completion_tokens == room - 60
    tokens = answer.usage.prompt_tokens + room - 60
    assert roomy.nbytes == 3 * 8 * tokens * 16 * 4  # to the token: no more than was needed


def test_a_batch_claims_the_memory_of_its_rows(model, needed):
    llm = make(model, needed + 1000)
    reading = llm.read(LONG)
    assert reading.ask(SHORT, **FREE).text
    alone = [reading.ask(q, **FREE).text for q in (SHORT, "Who?", "Where?")]
    batch = reading.ask_batch([SHORT, "Who?", "Where?"], **FREE)
    assert [answer.text for answer in batch] == alone


def test_framework_readings_that_were_kept_are_evicted(model, needed):
    llm = make(model, needed + 100_000, prefix_cache_bytes=0)
    kept = KeptReadings(llm)
    first = [Document.from_text(LONG)]
    kept.get(first, SHORT)
    gc.collect()
    second = kept.get([Document.from_text(LONG[::-1])], SHORT)
    assert second.ask(SHORT, **FREE).text
    assert kept.nbytes == second.nbytes


def test_all_that_is_held_for_a_model_counts_against_its_limit(model, needed):
    """Two of one model under a limit ignored each other's readings."""
    one, other = (make(model, needed + 1000, prefix_cache_bytes=0) for _ in range(2))
    reading = one.read(LONG)
    with pytest.raises(MemoryBudgetExceeded):
        other.read(LONG)
    del reading
    gc.collect()
    assert other.read(LONG).ask(SHORT, **FREE).text


@pytest.fixture
def no_garbage_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_readings_that_are_garbage_are_collected_before_a_refusal(
    model, needed, tmp_path, no_garbage_collection
):
    """A failed request's traceback held a reading, and the next request was refused for it."""
    llm = make(model, needed + 1000, prefix_cache_bytes=0)
    path = tmp_path / "kept"
    llm.read(LONG).save(path)
    for work in (llm.plan, llm.read, lambda text: llm.load(path), llm.generate):
        in_a_cycle = [llm.read(LONG)]
        in_a_cycle.append(in_a_cycle)
        del in_a_cycle
        work(LONG)
    with pytest.raises(MemoryBudgetExceeded):
        [llm.read(LONG) for _ in range(2)]


def test_a_run_that_failed_releases_its_memory_at_once(model, monkeypatch, no_garbage_collection):
    llm, caches = make(model, prefix_cache_bytes=0), []

    def fail(*args, **options):
        caches.append(weakref.ref(options["past_key_values"]))
        raise OverflowError

    reading = llm.read(LONG)
    monkeypatch.setattr(model, "forward", fail)
    for work in (llm.read, reading.ask, llm.generate):
        with suppress(OverflowError):
            work("x")
        assert caches
    for thread in threading.enumerate():
        if thread.name == "selfextend-rag":  # it may not have left the last job yet
            thread.join()
    del reading
    assert [cache() for cache in caches] == [None] * len(caches)


def test_prompts_that_another_keeps_are_evicted_too(model, needed):
    one, other = (make(model, needed + 100_000) for _ in range(2))
    one.generate(LONG[:200], **FREE)
    assert one.prefix_cache.nbytes > 100_000
    assert other.read(LONG).ask(SHORT, **FREE).text
    assert one.prefix_cache.nbytes == 0


def free_on_cpu(monkeypatch, amount):
    free = DeviceMemory("cpu", amount, amount)
    monkeypatch.setattr(devices, "device_memory", lambda names, held: (free,))


def test_what_a_run_reserves_is_not_free_for_another_model_meanwhile(model, needed, monkeypatch):
    free_on_cpu(monkeypatch, needed + 1000)
    one = make(model, prefix_cache_bytes=0)
    other = make(copy.deepcopy(model), prefix_cache_bytes=0)
    plan, cache = one.plan(LONG), SelfExtendCache(model.config)
    with one._ledger.reserving(plan, plan.prompt_tokens) as reserve:
        reserve(cache)
        with pytest.raises(MemoryBudgetExceeded):
            other.read(LONG)
    assert other.read(LONG).ask(SHORT, **FREE).text


def test_two_runs_that_begin_at_once_do_not_reserve_the_same_bytes(model, needed, monkeypatch):
    free_on_cpu(monkeypatch, needed + 1000)
    llms = [make(copy.deepcopy(model), prefix_cache_bytes=0) for _ in range(4)]
    plan = llms[0].plan(LONG)
    begin, end, outcomes = threading.Barrier(len(llms)), threading.Barrier(len(llms)), []

    def run(llm):
        begin.wait()
        with llm._ledger.reserving(plan, plan.prompt_tokens) as reserve:
            try:
                reserve(SelfExtendCache(model.config))
                outcomes.append("reserved")
            except MemoryBudgetExceeded:
                outcomes.append("refused")
            end.wait()

    threads = [threading.Thread(target=run, args=(llm,)) for llm in llms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "reserved"]


def test_limits_of_two_models_are_each_their_own(model, needed, monkeypatch):
    """What both hold is less than they may take together; a third without a limit sees it all."""
    one, other = (make(copy.deepcopy(model), needed + 1000, prefix_cache_bytes=0) for _ in "ab")
    readings = [one.read(LONG), other.read(LONG)]
    assert all(reading.ask(SHORT, **FREE).text for reading in readings)
    plan = one.plan("x")
    free_on_cpu(monkeypatch, needed + 1000)
    third = make(copy.deepcopy(model), prefix_cache_bytes=0)
    with one._ledger.reserving(plan, plan.prompt_tokens) as reserve:
        reserve(SelfExtendCache(model.config))
        with pytest.raises(MemoryBudgetExceeded):
            third.read(LONG)
    assert third.read(LONG).ask(SHORT, **FREE).text


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "ask", "generate", "drop", "long question"]), st.integers(20, 330)
    ),
    min_size=4,
    max_size=9,
)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(OPERATIONS, st.integers(900, 4000), st.sampled_from([None, 8, 4]))
def test_whatever_is_done_what_is_held_stays_within_the_limit(model, operations, kibibytes, bits):
    limit = kibibytes * 1024
    llm = make(model, limit, kv_bits=bits, trained_fraction=1)
    readings, ran = [], 0
    for what, size in operations:
        text = (LONG * 2)[:size] if size % 2 else (LONG * 2)[-size:]
        try:
            if what == "read":
                readings.append(llm.read(text, max_new_tokens=8, question_reserve=20))
            elif what == "generate":
                llm.generate(text, **FREE)
            elif what == "drop":
                readings = readings[1:]
                gc.collect()
            elif readings:
                question = SHORT if what == "ask" else "x" * 60
                readings[-1].ask(question, evidence=bool(size % 3), **FREE)
            ran += 1
        except ContextBudgetExceeded:  # of memory, mostly
            pass
        kept = llm.prefix_cache.nbytes
        weights = sum(p.nbytes for p in model.parameters())
        assert weights + kept + sum(reading.nbytes for reading in readings) <= limit
    assert ran or kibibytes < 1500
