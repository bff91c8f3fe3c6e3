"""Rows that look at shared keys together, against the dense attention of each row alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag import SelfExtend
from selfextend_rag.attention import AttentionSpec, GroupedKeys, Scoring
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.attention.shared import extended_rows_attention, rows_attention
from selfextend_rag.rope import RotaryLayout

ROTARY = RotaryLayout((1.0, 0.3))
SCALING = 0.6


def spec_of(method, **options):
    return AttentionSpec(rotary=ROTARY, bands=method.bands, scaling=SCALING, **options)


def random_rows(shared, lengths, kv_heads, value_dim):
    torch.manual_seed(shared)
    q = torch.randn(len(lengths), 2 * kv_heads, 1, 4, dtype=torch.float64)

    def states(length, dim):
        return torch.randn(1, kv_heads, length, dim, dtype=torch.float64)

    own = [(states(length, 4), states(length, value_dim)) for length in lengths]
    return q, states(shared, 4), states(shared, value_dim), own


def each_alone(q, k, v, own, method, **options):
    return torch.cat(
        [
            reference_attention(
                q[i : i + 1], torch.cat([k, keys], 2), torch.cat([v, values], 2),
                spec_of(method, **options),
            )
            for i, (keys, values) in enumerate(own)
        ]
    )  # fmt: skip


cases = {
    "shared": st.integers(1, 40),
    "lengths": st.lists(st.integers(1, 20), min_size=1, max_size=5),
    "kv_heads": st.integers(1, 2),
    "value_dim": st.sampled_from([2, 4, 6]),
    "softcap": st.sampled_from([None, 3.0]),
    "with_sinks": st.booleans(),
}


@settings(max_examples=150, deadline=None)
@given(method=st.builds(SelfExtend, st.integers(1, 5), st.integers(5, 24)), **cases)
def test_extended_rows_attend_as_each_alone(
    method, shared, lengths, kv_heads, value_dim, softcap, with_sinks
):
    q, k, v, own = random_rows(shared, lengths, kv_heads, value_dim)
    options = {"softcap": softcap, "sinks": torch.randn(q.shape[1]) if with_sinks else None}
    store = GroupedKeys()
    for rows in (own, own[::-1], own[:1]):  # the store is used again with other far keys
        query = q[: len(rows)]
        expected = each_alone(query, k, v, rows, method, **options)
        out = extended_rows_attention(
            query, k, v, rows, spec_of(method, **options), grouped_keys=store, capacity=60
        )
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(**cases)
def test_plain_rows_attend_as_each_alone(shared, lengths, kv_heads, value_dim, softcap, with_sinks):
    q, k, v, own = random_rows(shared, lengths, kv_heads, value_dim)
    options = {"softcap": softcap, "sinks": torch.randn(q.shape[1]) if with_sinks else None}
    expected = each_alone(q, k, v, own, SelfExtend(1, 5), **options)

    def rotated(keys, begin):
        return ROTARY.rotate(keys, torch.arange(begin, begin + keys.shape[2]))

    latest = torch.tensor([[shared + length - 1] for length in lengths])
    own_rotated = [(rotated(keys, shared), values) for keys, values in own]
    out = rows_attention(
        ROTARY.rotate(q, latest), rotated(k, 0), v, own_rotated, Scoring(scaling=SCALING, **options)
    )
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-12)
