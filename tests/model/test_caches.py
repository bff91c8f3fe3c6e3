"""Extended models and caches: chunks, static ones, padded batches, and those of another model."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from selfextend_rag import SelfExtend, extended
from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import CacheMismatchError
from tests.model.models import LENGTH, METHOD, close, ids, llama

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("make_cache", [DynamicCache, SelfExtendCache], ids=lambda c: c.__name__)
@pytest.mark.parametrize("pieces", [[LENGTH], [13, 20, 27], [5] + [1] * (LENGTH - 5)], ids=len)
def test_one_prefill_is_a_prefill_in_chunks_is_token_by_token(model, make_cache, pieces):
    with extended(model, METHOD):
        expected = model(ids(), use_cache=False).logits
        cache = make_cache(config=model.config)
        out = [model(x, past_key_values=cache).logits for x in ids().split(pieces, dim=1)]
        close(torch.cat(out, dim=1), expected)


def test_a_static_cache_serves_as_well():
    model = llama()
    with extended(model, METHOD):
        expected = model(ids(), use_cache=False).logits
        cache = StaticCache(config=model.config, max_cache_len=LENGTH + 20)
        out = [model(x, past_key_values=cache).logits for x in ids().split([31, 28, 1], dim=1)]
        close(torch.cat(out, dim=1), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make_cache", [None, DynamicCache, SelfExtendCache])
def test_a_row_alone_is_the_row_in_a_padded_batch(model, side, make_cache):
    rows = [ids(1, length=LENGTH), ids(2, length=37), ids(3, length=8)]
    batch, mask = torch.full((3, LENGTH), 127), torch.zeros(3, LENGTH, dtype=torch.long)
    places = []
    for i, row in enumerate(rows):
        n = row.shape[1]
        places.append(slice(LENGTH - n, LENGTH) if side == "left" else slice(0, n))
        batch[i, places[i]], mask[i, places[i]] = row[0], 1
    with extended(model, METHOD):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = make_cache(config=model.config) if make_cache else None
        if cache is None:
            out = model(batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
        else:
            out = torch.cat(
                [
                    model(
                        batch[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                        past_key_values=cache,
                    ).logits
                    for a, b in ((0, 45), (45, LENGTH - 1), (LENGTH - 1, LENGTH))
                ],
                dim=1,
            )  # fmt: skip
        for i, row in enumerate(rows):
            close(out[i, places[i]], model(row, use_cache=False).logits[0])


def test_generate_of_a_padded_batch_is_that_of_each_row():
    model = llama()
    rows = [ids(1, length=50), ids(2, length=31)]
    batch = torch.full((2, 50), 127)
    batch[0], batch[1, 19:] = rows[0][0], rows[1][0]
    mask = torch.ones_like(batch)
    mask[1, :19] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 127}
    with extended(model, METHOD):
        together = model.generate(batch, attention_mask=mask, **options)[:, 50:]
        for i, row in enumerate(rows):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **options)
            assert together[i].tolist() == alone[0, row.shape[1] :].tolist()


def test_beam_search_with_our_cache_is_that_of_the_stock_cache():
    model = llama()
    options = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with extended(model, METHOD):
        expected = model.generate(ids(), **options)
        cache = SelfExtendCache(config=model.config)
        assert torch.equal(model.generate(ids(), past_key_values=cache, **options), expected)


def test_a_cache_that_the_model_made_is_gone_on_with(model):
    """It was refused as filled by plain attention: no pre-hook had seen it empty."""
    with extended(model, METHOD):
        whole = model(ids()).logits
        first = model(ids()[:, :40])
        rest = model(ids()[:, 40:], past_key_values=first.past_key_values).logits
        close(rest, whole[:, 40:])
        cache = first.past_key_values
    with extended(model, SelfExtend(2, 8)), pytest.raises(CacheMismatchError, match="60 tokens"):
        model(ids(), past_key_values=cache)


@pytest.mark.parametrize("made_by", ["user", "user without a config", "model", "generate"])
def test_a_cache_of_transformers_filled_extended_is_not_gone_on_with_plainly(model, made_by):
    """Nothing noticed: the stock model rotated its query and met keys that nobody had."""
    cache = DynamicCache(config=None if made_by == "user without a config" else model.config)
    with extended(model, METHOD):
        if made_by == "generate":
            options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
            cache = model.generate(ids(), pad_token_id=0, **options).past_key_values
        elif made_by == "model":
            cache = model(ids()).past_key_values
        else:
            model(ids(), past_key_values=cache)
    with pytest.raises(
        CacheMismatchError, match="continued under plain attention; read them again"
    ):
        model(ids()[:, :1], past_key_values=cache)


def test_a_static_cache_filled_plainly_is_not_continued_extended(model):
    cache = StaticCache(config=model.config, max_cache_len=LENGTH + 20)
    model(ids(), past_key_values=cache)
    with extended(model, METHOD), pytest.raises(CacheMismatchError, match="under plain"):
        model(ids()[:, :1], past_key_values=cache)
    cache.reset()  # and anybody's again
    with extended(model, METHOD):
        out = model(ids(), past_key_values=cache).logits
        close(out, model(ids(), use_cache=False).logits)


def test_training_keeps_the_layers_of_a_cache_that_gradients_go_through():
    model = llama()
    with torch.enable_grad(), extended(model, METHOD):
        out = model(ids(), labels=ids())
        again = model(ids()[:, :3], past_key_values=out.past_key_values)
        (out.loss + again.logits.sum()).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.isfinite().all()
