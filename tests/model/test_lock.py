"""One model, several threads: each waits for the other; a wait without an end is refused."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from transformers import DynamicCache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.model import extend, extended, is_extended, lock_of, restore, support
from selfextend_rag.positions import SelfExtend
from tests.tiny import byte_tokenizer, tiny_llama

PROMPT = [5 + (i * i * 7 + i) % 250 for i in range(90)]
GREEDY = GenerationSettings(max_new_tokens=30, stop_token_ids=())
EXTENDED = SelfExtend(4, 16)
IDS = torch.tensor([PROMPT])


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.mark.parametrize("extension", [None, EXTENDED], ids=str)
@pytest.mark.parametrize(
    "act",
    [support, lambda m: extend(m, SelfExtend(2, 8)), restore, lambda m: extended_once(m)],
    ids=["support", "extend", "restore", "extended"],
)
def test_other_threads_wait_for_a_running_answer_instead_of_changing_the_model(extension, act):
    """A probe under a running answer raised LookupError; a change gave it other attention."""
    expected = list(Engine(tiny_llama()).generate(PROMPT, GREEDY, settings=extension))
    model = tiny_llama()
    engine = Engine(model)
    done = threading.Event()
    with engine.generate(PROMPT, GREEDY, settings=extension) as generation:
        tokens = [next(generation)]
        thread = in_thread(lambda: (act(model), done.set()))
        tokens += [next(generation) for _ in range(20)]
        assert not done.wait(0.05)
        tokens += list(generation)
    thread.join()
    assert tokens == expected
    assert support(model).supported


def extended_once(model):
    with extended(model, SelfExtend(2, 8)):
        pass


def test_the_thread_that_runs_may_look_at_its_model():
    model = tiny_llama()
    with Engine(model).generate(PROMPT, GREEDY) as generation:
        next(generation)
        assert support(model).supported
        assert len(list(generation)) == 29


def test_waiting_for_an_answer_behind_one_s_own_unfinished_one_is_refused():
    """It waited for ever: the answer for the model, the model for the thread that waits."""
    llm = LongContextLLM(tiny_llama(), byte_tokenizer())
    reading = llm.read("The sky is blue.", max_new_tokens=8)
    options = {"max_new_tokens": 8, "stop": (), "stop_token_ids": ()}
    expected = reading.ask("Why?", **options).text
    with llm.engine.generate(PROMPT[:20], GREEDY) as generation:
        next(generation)
        with pytest.raises(RuntimeError, match=r"unfinished generation .* close it first"):
            next(reading.stream("Why?", **options))
        with pytest.raises(RuntimeError, match=r"unfinished generation .* close it first"):
            reading.ask("Why?", **options)
        with pytest.raises(RuntimeError, match="this thread has an unfinished generation"):
            llm.engine.prefill([5])
        assert len(list(generation)) == 29
    assert reading.ask("Why?", **options).text == expected


def test_waiting_behind_another_thread_s_answer_is_no_circle():
    llm = LongContextLLM(tiny_llama(), byte_tokenizer())
    go = threading.Event()
    started = threading.Event()

    def hold():
        with llm.engine.generate(PROMPT[:20], GREEDY) as generation:
            next(generation)
            started.set()
            go.wait()

    thread = in_thread(hold)
    started.wait()
    stream = llm.stream("Hello", max_new_tokens=3, stop_token_ids=())
    threading.Timer(0.4, go.set).start()
    assert stream.answer.usage.completion_tokens == 3
    thread.join()


def test_an_abandoned_answer_collected_in_another_thread_frees_the_model():
    model = tiny_llama()
    box = [Engine(model).generate(PROMPT, GREEDY, settings=EXTENDED)]
    next(box[0])
    thread = in_thread(lambda: (box.clear(), gc.collect()))
    thread.join(10)
    assert not thread.is_alive()
    assert not is_extended(model)
    with lock_of(model).hold(lambda: True) as held:
        assert held


@pytest.mark.parametrize("kind", [DynamicCache, SelfExtendCache])
@pytest.mark.parametrize("before", [None, SelfExtend(2, 8)], ids=str)
@torch.no_grad()
def test_a_cache_of_any_kind_that_was_filled_otherwise_is_refused(kind, before):
    model = tiny_llama()
    cache = kind(config=model.config)
    if before is not None:
        extend(model, before)
    model(IDS[:, :40], past_key_values=cache)
    extend(model, EXTENDED)
    with pytest.raises(CacheMismatchError, match=r"40 tokens were .* with a new cache"):
        model(IDS[:, 40:], past_key_values=cache)
    fresh = kind(config=model.config)
    whole = model(IDS).logits[:, 40:]
    model(IDS[:, :40], past_key_values=fresh)
    torch.testing.assert_close(model(IDS[:, 40:], past_key_values=fresh).logits, whole)


@torch.no_grad()
def test_a_cache_of_extended_keys_is_not_gone_on_with_plainly_and_stays_as_it_was():
    model = tiny_llama()
    cache = SelfExtendCache(config=model.config)
    with extended(model, EXTENDED):
        model(IDS[:, :40], past_key_values=cache)
    says = r"40 tokens were cached under .* and can't be continued under plain attention"
    with pytest.raises(CacheMismatchError, match=says):
        model(IDS[:, 40:50], past_key_values=cache)
    with extended(model, EXTENDED):
        whole = model(IDS).logits[:, 40:]
        torch.testing.assert_close(model(IDS[:, 40:], past_key_values=cache).logits, whole)
