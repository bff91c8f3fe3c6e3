"""A model under the other maps: read whole, in chunks and token by token, padded, and cached."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.maps import AdaGroPE, DualChunk, LaMPE, LeakyReRoPE, ReRoPE, String
from selfextend_rag.model import extended
from selfextend_rag.positions import SelfExtend
from tests.tiny import tiny_llama

TOTAL = 45
MAPS = [
    ReRoPE(6, log_scaled=20),
    LeakyReRoPE(6, 3),
    String(20, 6),
    DualChunk(17, 4),
    LaMPE(8, 3, 16, TOTAL),
    AdaGroPE(20, 0.25, TOTAL),
]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(window=32).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(5, 250, (2, TOTAL), generator=torch.Generator().manual_seed(1))


def fed(model, tokens, cuts):
    cache, logits = SelfExtendCache(model.config), []
    for begin, end in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        logits.append(model(tokens[:, begin:end], past_key_values=cache).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("found", MAPS, ids=lambda found: found.name)
@torch.no_grad()
def test_however_it_is_read_the_logits_are_those_of_the_dense_softmax(model, tokens, found):
    stock = model(tokens).logits
    with extended(model, found, impl="reference"):
        dense = model(tokens).logits
    assert (dense - stock).abs().max() > 1e-3  # the map changes something
    with extended(model, found):
        for cuts in ([], [3, 30, 31], range(1, TOTAL)):
            torch.testing.assert_close(fed(model, tokens, cuts), dense, rtol=0, atol=1e-9)
        mask = torch.ones_like(tokens)
        padded = tokens.clone()
        mask[0, :9], padded[0, 9:] = 0, tokens[0, : TOTAL - 9]
        got = model(padded, attention_mask=mask).logits
        torch.testing.assert_close(got[0, 9:], dense[0, : TOTAL - 9], rtol=0, atol=1e-9)
        torch.testing.assert_close(got[1], dense[1], rtol=0, atol=1e-9)
    assert torch.equal(model(tokens).logits, stock)


@pytest.mark.parametrize("kind", [SelfExtendCache, DynamicCache])
@torch.no_grad()
def test_a_cache_of_one_map_is_refused_under_another_of_equal_figures(model, tokens, kind):
    cache = kind(config=model.config)
    with extended(model, String(6, 6)):
        model(tokens[:, :30], past_key_values=cache)
    for other in (DualChunk(6, 5), ReRoPE(6), SelfExtend(6, 6)):
        with extended(model, other), pytest.raises(CacheMismatchError, match="String"):
            model(tokens[:, 30:31], past_key_values=cache)
