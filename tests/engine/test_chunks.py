"""Models that forget what came before when several tokens follow are not fed in chunks."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model import continuation_reason, support
from tests import zoo

TOKENS = tuple(zoo.tokens(40)[0].tolist())
GREEDY = GenerationSettings(max_new_tokens=6, stop_token_ids=())


def stock(model, tokens):
    """Greedy tokens of the model by itself, from whole prompts without any cache."""
    found = list(tokens)
    with torch.no_grad():
        for _ in range(GREEDY.max_new_tokens):
            found.append(int(model(torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(tokens) :]


@pytest.mark.parametrize("family", ["jamba", "zamba", "recurrent_gemma"])
def test_a_model_that_loses_its_state_reads_prompts_whole_or_not_at_all(family):
    """Answers to a reading came from the question alone: the stock code began again with it."""
    model = zoo.build(family)
    engine, store = Engine(model, chunk_size=16), PrefixStore(1 << 30)
    with pytest.raises(
        UnsupportedModelError, match=r"logits would change by .*; give document and"
    ):
        engine.prefill(TOKENS[:10])
    with pytest.raises(
        UnsupportedModelError, match=r"logits would .* set chunk_size to 40 to read it at once"
    ):
        next(engine.generate(TOKENS, GREEDY))
    for tokens in (TOKENS[:30], TOKENS):
        generation = engine.generate(tokens, GREEDY, chunk_size=40, reuse=store)
        assert list(generation) == stock(model, tokens)
        assert generation.usage.cached_tokens == 0
    assert list(engine.generate(TOKENS[:9], GREEDY)) == stock(model, TOKENS[:9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["jamba", "zamba", "recurrent_gemma", "bamba"])
def test_a_lost_state_is_told_from_rounding(family, dtype):
    assert "logits would change" in continuation_reason(zoo.build(family).to(dtype), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["zamba2", "gemma3n_text", "qwen3_moe", "llama4_text", "llama"])
def test_rounding_is_no_lost_state(family, dtype):
    """Those that round the most, of all that can be built, and a common one."""
    assert continuation_reason(zoo.build(family).to(dtype), None) == ""


def test_a_state_that_is_kept_outside_of_the_cache_is_noticed():
    """As RecurrentGemma's is in transformers 5.17: another prompt writes over it."""
    model = zoo.build("llama")

    def remember(layer, args, output):
        begins = output.shape[1] != 1 and not layer.kept
        output = output if begins else output + layer.kept[-1]
        layer.kept = [output[:, -1:].detach()]
        return output

    model.model.layers[0].kept = []
    model.model.layers[0].register_forward_hook(remember)
    with pytest.raises(UnsupportedModelError, match="logits would change"):
        Engine(model).prefill(TOKENS)


@pytest.mark.parametrize("family", ["bert", "roberta", "roformer"])
def test_a_model_that_sees_what_comes_after_makes_no_readings(family):
    """An encoder under the head of a language model: in chunks it is another model."""
    with pytest.raises(UnsupportedModelError, match="logits would change"):
        Engine(zoo.build(family)).prefill(TOKENS)


def test_a_model_that_fails_in_chunks_is_refused_with_what_it_said():
    model = zoo.build("llama")

    def fail(layer, args, kwargs):
        if kwargs["past_key_values"].get_seq_length():
            raise ValueError("one chunk is enough")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(UnsupportedModelError, match="fails in a check: ValueError: one chunk is"):
        Engine(model).prefill(TOKENS)


@pytest.mark.parametrize("family", ["lfm2", "falcon_h1", "qwen3_next"])
def test_a_model_that_keeps_its_state_is_read_in_chunks(family):
    model = zoo.build(family)
    engine = Engine(model, chunk_size=16)
    prefix = engine.prefill(TOKENS[:25])
    assert list(engine.generate(TOKENS, GREEDY, prefix=prefix)) == stock(model, TOKENS)
    assert list(engine.generate(TOKENS, GREEDY)) == stock(model, TOKENS)


@pytest.mark.parametrize("family", ["gptj", "mpt", "gpt_neox_japanese"])
def test_a_refused_model_is_read_in_chunks_whether_or_not_it_was_asked_about_first(family):
    """`support` runs such models without a causal mask, and took that for a lost state."""
    model = zoo.build(family)
    assert not support(model).supported
    prefix = Engine(model, chunk_size=16).prefill(TOKENS[:25])
    assert list(Engine(model).generate(TOKENS, GREEDY, prefix=prefix)) == stock(model, TOKENS)
