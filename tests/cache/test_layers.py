"""The growing cache against the one of transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from selfextend_rag import SelfExtend, extended
from selfextend_rag.cache import GrowingLayer, SelfExtendCache
from selfextend_rag.errors import CacheMismatchError
from tests.model.models import gemma, llama

METHOD = SelfExtend(4, 9)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def ids(seed=0, batch=1, length=40):
    return torch.randint(1, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def fill(layer, *lengths, batch=2):
    for n in lengths:
        x = torch.randn(batch, 2, n, 8)
        keys, values = layer.update(x, x + 1)
    return keys, values


def test_what_comes_back_is_what_went_in_across_growth():
    layer, parts = GrowingLayer(), []
    for n in (3, 300, 1, 1, 500):
        part = torch.randn(2, 2, n, 8)
        parts.append(part)
        keys, values = layer.update(part, part + 1)
    assert torch.equal(keys, torch.cat(parts, dim=2))
    assert torch.equal(values, keys + 1)
    assert layer.get_seq_length() == 805


def test_appending_copies_nothing_while_there_is_room():
    layer = GrowingLayer(capacity=64)
    fill(layer, 10)
    place = layer.keys.data_ptr()
    fill(layer, *[1] * 54)
    assert layer.keys.data_ptr() == place


def test_room_is_made_geometrically():
    layer, places = GrowingLayer(), set()
    for _ in range(3000):
        fill(layer, 1, batch=1)
        places.add(layer.keys.data_ptr())
    assert len(places) < 12


OPERATIONS = {
    "crop": lambda c: c.crop(-7),
    "crop and go on": lambda c: c.crop(-23),
    "reorder": lambda c: c.reorder_cache(torch.tensor([1, 0])),
    "repeat": lambda c: c.batch_repeat_interleave(2),
    "select": lambda c: c.batch_select_indices(torch.tensor([1])),
    "copy": lambda c: None,
    "reset": lambda c: c.reset(),
}


# transformers' own sliding layers can't be cropped that far, so the mixed model is not
CASES = [(llama, name) for name in OPERATIONS]
CASES += [(gemma, name) for name in OPERATIONS if not name.startswith("crop")]
if "reset" not in vars(DynamicLayer):  # transformers 5.15: a stock cache goes on behind zeros
    CASES = [case for case in CASES if case[1] != "reset"]


@pytest.mark.parametrize("extend_it", [False, True])
@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_after_every_operation_it_goes_on_as_the_stock_cache(make, extend_it, name):
    model = make()
    with extended(model, METHOD if extend_it else SelfExtend(1, 9)):
        logits = []
        for kind in (DynamicCache, SelfExtendCache):
            cache = kind(config=model.config)
            for piece in ids(1, 2).split([20, 15, 1, 1, 1, 2], dim=1):
                model(piece, past_key_values=cache)
            OPERATIONS[name](cache)
            if name == "copy":
                cache = copy.deepcopy(cache)
            rows = max(1, getattr(cache.layers[-1].keys, "shape", [2])[0] if name != "reset" else 2)
            out = [
                model(piece, past_key_values=cache).logits
                for piece in ids(2, 1, 12).expand(rows, -1).split([10, 1, 1], dim=1)
            ]
            logits.append(torch.cat(out, dim=1))
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=2e-4)


def test_grouped_keys_are_kept_by_an_extended_model_alone():
    model = llama()
    cache = SelfExtendCache(config=model.config)
    model(ids(), past_key_values=cache)
    assert cache.layers[0].grouped_keys.nbytes == 0
    cache = SelfExtendCache(config=model.config)
    with extended(model, METHOD):
        model(ids(), past_key_values=cache)
    assert cache.layers[0].grouped_keys.nbytes == cache.layers[0]._buffers[0].nbytes
    assert cache.nbytes == 3 * 3 * cache.layers[0]._buffers[0].nbytes


def test_a_long_prefill_keeps_no_grouped_keys_until_they_are_asked_for():
    model = llama()
    cache = SelfExtendCache(config=model.config)
    with extended(model, METHOD):
        model(ids(length=400), past_key_values=cache)
        assert cache.layers[0].grouped_keys.nbytes == 0
        out = model(ids(1, length=1), past_key_values=cache).logits
        assert cache.layers[0].grouped_keys.nbytes > 0
        whole = torch.cat([ids(length=400), ids(1, length=1)], dim=1)
        expected = model(whole, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)


def test_a_cropped_cache_does_not_reuse_the_grouped_keys_of_what_was_cropped():
    """After a crop, other tokens may stand where grouped keys were already kept."""
    model = llama()
    with extended(model, METHOD):
        cache = SelfExtendCache(config=model.config)
        model(ids(1), past_key_values=cache)
        cache.crop(-30)
        out = model(ids(2), past_key_values=cache).logits
        whole = torch.cat([ids(1)[:, :10], ids(2)], dim=1)
        expected = model(whole, use_cache=False).logits[:, 10:]
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)


def test_a_reading_asked_again_does_not_keep_the_scratch_of_the_first_question():
    """A shorter question after a crop wrote its neighbors over slots that counted as grouped."""
    model = llama()
    with extended(model, METHOD):
        cache = SelfExtendCache(config=model.config)
        model(ids(1), past_key_values=cache)
        for length in (20, 3, 9, 1, 15):
            question = ids(length, length=length)
            out = [model(x, past_key_values=cache).logits for x in question.split([1] * length, 1)]
            whole = torch.cat([ids(1), question], dim=1)
            expected = model(whole, use_cache=False).logits[:, 40:]
            torch.testing.assert_close(torch.cat(out, dim=1), expected, rtol=0, atol=2e-4)
            cache.crop(-length)


@pytest.mark.parametrize("first", [None, SelfExtend(2, 9)])
def test_a_cache_filled_under_other_settings_is_refused(first):
    model = llama()
    cache = SelfExtendCache(config=model.config)
    if first is None:
        model(ids(), past_key_values=cache)
    else:
        with extended(model, first):
            model(ids(), past_key_values=cache)
    with extended(model, METHOD), pytest.raises(CacheMismatchError, match="40 tokens were cached"):
        model(ids(length=2), past_key_values=cache)


def test_a_dropped_cache_frees_its_memory_at_once():
    import weakref

    model = llama()
    cache = SelfExtendCache(config=model.config)
    model(ids(), past_key_values=cache)
    layer = weakref.ref(cache.layers[0])
    del cache
    assert layer() is None
