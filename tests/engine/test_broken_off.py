"""A forward over a long chunk is broken off when it is cancelled, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Lfm2Config

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.evidence.watch import AttentionWatch
from selfextend_rag.positions import SelfExtend
from tests.tiny import tiny_llama

PROMPT = [5 + (i * i * 7 + i) % 250 for i in range(300)]
OPTIONS = GenerationSettings(max_new_tokens=6, stop_token_ids=())
SMALL = {
    "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
KINDS = {
    "keeps all": lambda: tiny_llama(window=1024),
    "slides": lambda: _of(Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=32)),
    "recurs": lambda: _of(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"] * 2)),
}


def _of(config):
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@contextmanager
def cancelled_within(model, chunk):
    """Yield an event that is set in the middle of a chunk, whose modules then take their time."""
    event, chunks, slow = threading.Event(), [0], [0]
    layers = [module for module in model.modules() if type(module).__name__.endswith("MLP")]
    middle = layers[len(layers) // 2]

    def at_the_start(module, given):
        chunks[0] += 1

    def in_the_middle(module, given):
        if chunks[0] >= chunk:
            event.set()
            slow[0] += 1
            time.sleep(0.06)

    hooks = [
        model.register_forward_pre_hook(at_the_start),
        middle.register_forward_pre_hook(in_the_middle),
    ]
    try:
        yield event
    finally:
        for hook in hooks:
            hook.remove()
    assert slow[0] == 1  # no forward begins after it


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("settings", [None, SelfExtend(4, 16)], ids=str)
def test_a_prefill_is_broken_off_within_a_chunk(settings):
    model = tiny_llama()
    engine = Engine(model, chunk_size=100)
    engine.prefill(PROMPT[:9], settings=settings)  # the model has been looked at
    before, ended = hooks_of(model), []
    last = list(model.modules())[-1]
    heard = last.register_forward_pre_hook(lambda module, given: ended.append(module))
    with cancelled_within(model, 2) as event, pytest.raises(GenerationCancelled) as caught:
        engine.prefill(PROMPT, settings=settings, cancelled=event)
    heard.remove()
    assert (caught.value.done, caught.value.total) == (100, 300)
    assert len(ended) == 1  # the second chunk did not come to the model's last module
    assert hooks_of(model) == before


def test_what_was_broken_off_leaves_whole_chunks_or_nothing_for_the_next_prompt(kind):
    model = KINDS[kind]()
    right = list(Engine(model, chunk_size=100).generate(PROMPT, OPTIONS))
    store = PrefixStore(1 << 30)
    engine = Engine(model, chunk_size=100)
    with cancelled_within(model, 2) as event:
        generation = engine.generate(PROMPT, OPTIONS, reuse=store, cancelled=event)
        assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    again = engine.generate(PROMPT, OPTIONS, reuse=store)
    assert list(again) == right
    assert again.usage.cached_tokens in ((100,) if kind == "keeps all" else (0,))


@pytest.mark.parametrize("watched", [False, True])
def test_a_question_that_was_broken_off_leaves_the_documents_as_they_were(kind, watched):
    model = KINDS[kind]()
    engine = Engine(model, chunk_size=100)
    prefix = engine.prefill(PROMPT[:120])
    right = list(engine.generate(PROMPT, OPTIONS, prefix=prefix))
    observer = AttentionWatch([len(PROMPT)]) if watched else None
    with cancelled_within(model, 1) as event:
        asked = engine.generate(PROMPT, OPTIONS, prefix=prefix, cancelled=event, observer=observer)
        assert list(asked) == []
    assert prefix.cache.get_seq_length() == 120
    assert list(engine.generate(PROMPT, OPTIONS, prefix=prefix)) == right
