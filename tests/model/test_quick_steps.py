"""Single tokens of a plain model on a CPU: quicker, and those of the stock model."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.engine import Engine, GenerationSettings, decode
from selfextend_rag.evidence.watch import AttentionWatch
from selfextend_rag.model import attention_fn, extended, observe, quick_steps
from tests.model.models import METHOD, close, gemma, ids, llama, neox

MODELS = pytest.mark.parametrize("build", [llama, gemma, neox])


@torch.inference_mode()
def stepped(model, tokens, read, mask=None):
    """Return the logits of tokens read at once and then one by one."""
    cache, logits = SelfExtendCache(model.config), []
    for begin, end in [(0, read), *((i, i + 1) for i in range(read, tokens.shape[1]))]:
        seen = None if mask is None else mask[:, :end]
        part = tokens[:, begin:end]
        logits.append(model(part, attention_mask=seen, past_key_values=cache).logits[:, -1])
    return torch.stack(logits)


@pytest.fixture
def quick(monkeypatch):
    """Calls that were done the quick way."""
    calls = []

    def counted(asked):
        out = lone_query(asked)
        calls.append(out is not None)
        return out

    lone_query = attention_fn._lone_query
    monkeypatch.setattr(attention_fn, "_lone_query", counted)
    return calls


@MODELS
def test_logits_are_those_of_the_stock_model(build, quick):
    model, tokens = build(), ids(length=50)
    before = stepped(model, tokens, 30)
    assert not quick
    with quick_steps(model):
        after = stepped(model, tokens, 30)
    close(after, before)
    assert sum(quick) == 20 * model.config.num_hidden_layers
    assert model.config._attn_implementation == "sdpa"


@MODELS
def test_padding_hides_what_it_hid(build, quick):
    model, tokens = build(), ids(batch=2, length=50)
    mask = torch.ones(2, 50, dtype=torch.long)
    mask[1, :33] = 0  # more than a window
    before = stepped(model, tokens, 36, mask)
    with quick_steps(model):
        after = stepped(model, tokens, 36, mask)
    close(after, before)


def test_sliding_layers_of_an_extended_model_are_quick_too(quick):
    model, tokens = gemma(), ids(length=50)
    with extended(model, METHOD):
        quick.clear()
        stepped(model, tokens, 30)
    sliding = model.config.layer_types.count("sliding_attention")
    assert sum(quick) == 20 * sliding > 0


def test_a_model_whose_logits_depend_on_the_name_of_its_attention_stays_as_it_is(quick):
    model = llama()

    def scaled(module, args, output):
        return output * (1 if model.config._attn_implementation == "sdpa" else 2)

    model.model.layers[1].mlp.register_forward_hook(scaled)
    with quick_steps(model):
        assert model.config._attn_implementation == "sdpa"
    assert "depend on the name" in observe._renaming_reason(model)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("settings", [None, METHOD])
def test_answers_are_the_same(monkeypatch, watched, settings, quick):
    model, prompt = gemma(), ids(length=50)[0].tolist()
    options = GenerationSettings(max_new_tokens=12, stop_token_ids=())
    found = []
    for least in (1 << 20, 0):
        monkeypatch.setattr(decode, "_LONG", least)
        watch = AttentionWatch([len(prompt)]) if watched else None
        run = Engine(model).generate(prompt, options, settings=settings, observer=watch)
        found.append(list(run))
        if watch is not None:
            watch.answers[0].answer_tokens = 12
            found[-1].append(watch.answers[0].skipped)
    assert found[0] == found[1]
    assert any(quick)
