"""Partial attentions, and two of them as one softmax over the keys of both."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.attention import Scoring, partial
from selfextend_rag.attention.partial import merge, partial_attention


def part(scores, values):
    return torch.softmax(scores, -1) @ values, scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 17])
@pytest.mark.parametrize("strided", [False, True])
def test_parts_join_to_the_softmax_of_all_keys_whatever_the_slices(
    dtype, at_once, strided, monkeypatch
):
    monkeypatch.setattr(partial, "_MERGED_AT_ONCE", at_once)
    torch.manual_seed(0)
    scores, values = torch.randn(2, 3, 7, 20).double() * 3, torch.randn(2, 3, 20, 8).double()
    wanted, wanted_lse = part(scores, values)
    parts = [part(scores[..., keys], values[:, :, keys]) for keys in (slice(0, 5), slice(5, 20))]
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    (out, lse), (other, other_lse) = [(o.to(dtype), x.to(precise)) for o, x in parts]
    into = torch.empty(2, 7, 3, 8, dtype=dtype).transpose(1, 2) if strided else None
    got, got_lse = merge(out, lse, other, other_lse, into)
    assert got is (out if into is None else into)
    error = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (got.double() - wanted).abs().max() < error * wanted.abs().max()
    assert (got_lse.double() - wanted_lse).abs().max() < max(error, 1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_portable_part_equals_the_flash_part(causal, bias, monkeypatch):
    """What runs on devices without torch's CPU kernel, in several tiles of queries."""
    monkeypatch.setattr("selfextend_rag.attention.partial._SCORES_AT_ONCE", 4 * 37 * 5)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 37, 8, dtype=torch.float64) for heads in (4, 2, 2))
    mask = torch.zeros(37, 37, dtype=torch.float64)
    mask[:, 3:9] = -torch.inf
    options = {"causal": causal, "bias": mask if bias else None}
    if causal and bias:
        return
    flash = partial_attention(q, k, v, Scoring(scaling=0.3), **options)
    capped = Scoring(scaling=0.3, softcap=1e9)  # a softcap this large is none
    tiled = partial_attention(q, k, v, capped, **options)
    torch.testing.assert_close(tiled[0], flash[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(tiled[1], flash[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 2), (4, 1)])
@pytest.mark.parametrize("queries", [1, 2, 5, 40])
@pytest.mark.parametrize("value_dim", [8, 6, 12])
def test_few_queries_see_what_many_do(dtype, heads, kv_heads, queries, value_dim):
    """Heads that share keys are folded into their queries; a lone row of 16 bits is doubled."""
    torch.manual_seed(0)
    q = torch.randn(2, heads, queries, 8).to(dtype)
    k, v = torch.randn(2, kv_heads, 23, 8).to(dtype), torch.randn(2, kv_heads, 23, value_dim)
    v = v.to(dtype)
    repeated = (x.double().repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    keys, values = repeated
    wanted, wanted_lse = part(q.double() @ keys.mT * 0.3, values)
    found, found_lse = partial_attention(q, k, v, Scoring(scaling=0.3))
    assert found.shape == wanted.shape
    assert found.dtype == dtype
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert (found.double() - wanted).abs().max() < error
    assert (found_lse.double() - wanted_lse).abs().max() < max(error, 1e-5)
