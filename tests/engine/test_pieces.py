"""Models that forget what came before when several tokens follow are not fed in pieces."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.cache.prefix import PrefixStore
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import UnsupportedModelError
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
    """Answers to a reading came from the question alone: the stock code began anew with it."""
    model = zoo.build(family)
    engine, store = Engine(model, chunk_size=16), PrefixStore(1 << 30)
    with pytest.raises(UnsupportedModelError, match="forget what came before; give document and"):
        engine.prefill(TOKENS[:10])
    with pytest.raises(UnsupportedModelError, match="set chunk_size to 40 to read it at once"):
        next(engine.generate(TOKENS, GREEDY))
    for tokens in (TOKENS[:30], TOKENS):
        generation = engine.generate(tokens, GREEDY, chunk_size=40, reuse=store)
        assert list(generation) == stock(model, tokens)
        assert generation.usage.cached_tokens == 0
    assert list(engine.generate(TOKENS[:9], GREEDY)) == stock(model, TOKENS[:9])


@pytest.mark.parametrize("family", ["lfm2", "falcon_h1", "qwen3_next"])
def test_a_model_that_keeps_its_state_is_read_in_pieces(family):
    model = zoo.build(family)
    engine = Engine(model, chunk_size=16)
    prefix = engine.prefill(TOKENS[:25])
    assert list(engine.generate(TOKENS, GREEDY, prefix=prefix)) == stock(model, TOKENS)
    assert list(engine.generate(TOKENS, GREEDY)) == stock(model, TOKENS)
