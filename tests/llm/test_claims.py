"""What a model holds counts: nothing runs that memory has no room for beside it."""

from __future__ import annotations

import gc

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
from selfextend_rag.cache import persist
from selfextend_rag.llm.library import KeptReadings
from tests.tiny import byte_tokenizer, tiny_llama

LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))
FREE = {"max_new_tokens": 6, "stop": (), "stop_token_ids": ()}
SHORT = "Why?"


@pytest.fixture(scope="module")
def model():
    return tiny_llama(window=128, num_hidden_layers=8, dtype=torch.float32)


def make(model, limit=None, **options):
    return LongContextLLM(model, byte_tokenizer(), chunk_size=64, memory_limit=limit, **options)


@pytest.fixture(scope="module")
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


def test_kept_prompts_give_way_to_what_runs(model, needed):
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
    with pytest.raises(MemoryBudgetExceeded, match=r"it lacks .*; let go of other readings or ask"):
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


def test_framework_readings_that_were_kept_give_way(model, needed):
    llm = make(model, needed + 100_000, prefix_cache_bytes=0)
    kept = KeptReadings(llm)
    first = [Document.from_text(LONG)]
    kept.get(first, SHORT)
    gc.collect()
    second = kept.get([Document.from_text(LONG[::-1])], SHORT)
    assert second.ask(SHORT, **FREE).text
    assert kept.nbytes == second.nbytes


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
