"""The stated bound of the memory of rows against every allocation that a real batch makes."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag import SelfExtend
from selfextend_rag.cache import Row
from selfextend_rag.engine import BatchPrompt, Engine, GenerationSettings, Run
from selfextend_rag.engine.run import feed
from selfextend_rag.planning import ContextPlan, DeviceMemory, MemoryBudget
from tests import zoo
from tests.planning.test_workspace import memory_of, peak_bytes

pytestmark = pytest.mark.slow

QUESTION, ANSWER = 12, 3


def asked(tokens, count):
    questions = torch.randint(4, 90, (count, QUESTION)).tolist()
    settings = GenerationSettings(max_new_tokens=ANSWER, stop_token_ids=())
    return [BatchPrompt((*tokens, *question), settings) for question in questions]


def plan_of(prompt, settings, chunk):
    return ContextPlan(prompt, ANSWER, QUESTION, 4096, settings, chunk_size=chunk)


@pytest.mark.parametrize(
    ("chunk", "settings"),
    [(64, None), (64, SelfExtend(4, 64)), (10, SelfExtend(4, 64))],
    ids=["plain", "extended", "extended-small-chunks"],
)
@pytest.mark.parametrize(
    ("family", "bits"),
    [("llama", None), ("llama", 8), ("llama", 4), ("gemma3_text", None), ("gemma3_text", 4),
     ("gpt_neox", None)],
)  # fmt: skip
def test_no_batch_needs_more_than_the_bound(family, bits, chunk, settings):
    engine = Engine(zoo.build(family), chunk_size=chunk, kv_bits=bits)
    tokens = torch.randint(4, 90, (200,)).tolist()
    few = engine.prefill(tokens[:8], settings=settings)
    assert engine.rows_unsupported_reason(few) == ""  # the model has been measured, once for all
    plan, memory = plan_of(len(tokens), settings, chunk), memory_of(engine.model, bits)
    prompts = asked(tokens, 17)

    def run(count):
        prefix = engine.prefill(tokens, settings=settings, capacity=plan.total_tokens)
        list(engine.answers(prompts, prefix=prefix, at_once=count, run=Run()))

    stated = memory.estimate(len(tokens), QUESTION + ANSWER, settings, chunk).needed_bytes
    for count in (2, 16):
        own = MemoryBudget(memory).rows_bytes(plan, QUESTION + ANSWER, count)["cpu"]
        peak = peak_bytes(lambda count=count: run(count))
        assert peak <= stated + own


@pytest.mark.parametrize(("family", "bits"), [("llama", None), ("llama", 8), ("gemma3_text", None)])
def test_the_bound_is_not_loose(family, bits):
    engine = Engine(zoo.build(family), kv_bits=bits)
    tokens = torch.randint(4, 90, (300,)).tolist()
    prefix = engine.prefill(tokens, capacity=400)
    with prefix.borrowed() as cache:
        feed(engine.model, tuple(tokens[:QUESTION]), len(prefix), cache, Run(), QUESTION)
        row = Row(cache, len(prefix), QUESTION + ANSWER)
    memory, plan = memory_of(engine.model, bits), plan_of(300, None, 64)
    sixteen = MemoryBudget(memory).rows_bytes(plan, QUESTION + ANSWER, 16)["cpu"]
    assert 16 * row.nbytes < sixteen < 2 * 16 * row.nbytes


@pytest.mark.parametrize("is_held", [False, True])
def test_as_many_rows_as_fit_and_no_more(is_held):
    memory = memory_of(zoo.build("llama"))
    plan = plan_of(300, SelfExtend(4, 64), 64)
    stated = memory.estimate(300, QUESTION + ANSWER, plan.settings, 64)
    held = stated.kv_cache_bytes if is_held else 0
    for count in (2, 3, 16):
        own = MemoryBudget(memory).rows_bytes(plan, QUESTION + ANSWER, count)["cpu"]
        needed = stated.needed_bytes - held + own
        for free, fit in ((needed, count), (needed - 1, count - 1)):
            budget = MemoryBudget(memory, (DeviceMemory("cpu", free, free),))
            assert budget.most_rows(plan, QUESTION + ANSWER, 16, {"cpu": held}) == fit
    assert budget.most_rows(plan, QUESTION + ANSWER, 2, {"cpu": held}) == 2
    assert MemoryBudget(memory).most_rows(plan, QUESTION + ANSWER, 16) == 16
    nothing = MemoryBudget(memory, (DeviceMemory("cpu", 1, 1),))
    assert nothing.most_rows(plan, QUESTION + ANSWER, 16) == 1
