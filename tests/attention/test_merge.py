"""Two partial attentions are one softmax over the keys of both."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.attention import blocked, partial
from selfextend_rag.attention.partial import merge


def part(scores, values):
    return torch.softmax(scores, -1) @ values, scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 17])
@pytest.mark.parametrize("strided", [False, True])
def test_parts_join_to_the_softmax_of_all_keys_whatever_the_pieces(
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


def test_sixteen_bits_and_wide_heads_get_wide_tiles():
    def tile(dim, dtype, length=1000):
        return blocked._tile(torch.empty(1, 1, length, dim, dtype=dtype))

    assert tile(64, torch.bfloat16) == tile(128, torch.float32) == 32
    assert tile(128, torch.bfloat16) == tile(256, torch.float16) == 256
    assert tile(128, torch.bfloat16, 100) == 100
