"""The mass of each key is the sum of the reference's weights, whichever queries look at it."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag import SelfExtend
from selfextend_rag.attention import AttentionSpec, GroupedKeys
from selfextend_rag.attention.mass import attention_mass
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.rope import RotaryLayout

TOKENS = 41


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(("first", "count"), [(40, 1), (36, 5), (30, 1), (25, 9), (5, 3), (0, 1)])
@pytest.mark.parametrize("method", [SelfExtend(1, 6), SelfExtend(3, 6), SelfExtend(4, 30)])
def test_mass_is_the_sum_of_the_reference_s_weights(
    method, first, count, filled, step, monkeypatch
):
    """With kept grouped keys a query's neighbors were looked up among them."""
    monkeypatch.setattr("selfextend_rag.attention.mass._AT_ONCE", step)
    torch.manual_seed(0)
    q, k = (torch.randn(1, heads, TOKENS, 4, dtype=torch.float64) for heads in (4, 2))
    spec = AttentionSpec(rotary=RotaryLayout((1.0, 0.3)), bands=method.bands, scaling=0.7)
    store = GroupedKeys()
    if filled:
        store.reach(k, TOKENS - method.neighbor_window, spec)
    last = first + count
    seen = k[:, :, :last]
    values = torch.eye(last, dtype=k.dtype).expand(1, 2, -1, -1)
    weights = reference_attention(q[:, :, first:last], seen, values, spec)[0]  # [H, T, S]
    mass = attention_mass(
        q[0, :, first:last], k[0], spec, positions=torch.arange(first, last), grouped_keys=store
    )
    torch.testing.assert_close(mass[:, :last], weights.sum(1), rtol=0, atol=1e-12)
    assert not mass[:, last:].any()
