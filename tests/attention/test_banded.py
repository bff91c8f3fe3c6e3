"""Attention by the bands of every map against one dense softmax in float64.

The oracle takes each pair's relative position from the map's own arithmetic on integers, which
`tests/test_maps.py` holds to the papers, and rotates the query of each pair by that distance alone:
no bands, no positions of keys.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.attention import AttentionSpec, attend, attention_mass, self_extend_attention
from selfextend_rag.maps import AdaGroPE, DualChunk, LaMPE, LeakyReRoPE, ReRoPE, String
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

MAPS = [
    ReRoPE(9),
    ReRoPE(9, log_scaled=24),
    LeakyReRoPE(9, 3),
    String(30, 7),
    DualChunk(24, 5),
    LaMPE(12, 5, 40, 150),
    AdaGroPE(24, 0.25, 150),
    SelfExtend(3, 10),
]
some_map = st.sampled_from(MAPS)
RATES = (1.0, 0.31, 0.05)


@cache
def relative_positions(found, longest=150):
    return torch.tensor(
        [
            [float(found.relative_position(i, j)) if j <= i else 0.0 for j in range(longest)]
            for i in range(longest)
        ],
        dtype=torch.float64,
    )


def dense(q, k, v, found, *, scaling, softcap=None, sinks=None, scale=1.0):
    """One row, ``q`` ``[H, T, 6 + n]``: its first six dimensions are rotated in halves."""
    heads, length, total = q.shape[0], q.shape[1], k.shape[1]
    k, v = (x.double().repeat_interleave(heads // x.shape[0], 0) for x in (k, v))
    q = q.double()
    if found.log_scaled:
        at = torch.arange(total - length, total).double()
        q = q * (torch.log(at + 1) / math.log(found.log_scaled)).clamp(min=1)[:, None]
    place = relative_positions(found)[total - length : total, :total]
    scores = q[..., 6:] @ k[..., 6:].mT
    for pair, rate in enumerate(RATES):
        (a, b), (c, d) = ((x[..., pair], x[..., pair + 3]) for x in (q, k))
        along = a[:, :, None] * c[:, None] + b[:, :, None] * d[:, None]
        across = b[:, :, None] * c[:, None] - a[:, :, None] * d[:, None]
        turned = along * (place * rate).cos() - across * (place * rate).sin()
        scores = scores + turned * (scale * found.rotary_scale) ** 2
    scores = scores * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    unseen = torch.arange(total) > torch.arange(total - length, total)[:, None]
    scores = scores.masked_fill(unseen, -torch.inf)
    if sinks is not None:
        column = sinks.double()[:, None, None].expand(-1, length, 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v


def tensors(batch, heads, kv_heads, total, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, total, 8), (batch, kv_heads, total, 8), (batch, kv_heads, total, 5))
    return [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for shape in shapes]


@settings(max_examples=120, deadline=None)
@given(
    some_map,
    st.integers(1, 150),
    st.sampled_from(["reference", "blocked"]),
    st.sampled_from([None, 5.0]),
    st.booleans(),
    st.data(),
)
def test_each_map_is_one_dense_softmax(found, total, impl, softcap, with_sinks, data):
    length = data.draw(st.sampled_from([1, total]) | st.integers(1, total))
    q, k, v = tensors(1, 4, 2, total)
    q = q[:, :, total - length :]
    sinks = torch.linspace(-1, 2, 4, dtype=torch.float64) if with_sinks else None
    rotary = RotaryLayout(RATES, scale=1.3)
    options = {"scaling": 0.4, "softcap": softcap, "sinks": sinks}
    got = self_extend_attention(q, k, v, rotary=rotary, settings=found, impl=impl, **options)
    wanted = dense(q[0], k[0], v[0], found, scale=1.3, **options)
    torch.testing.assert_close(got[0], wanted, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(some_map, st.sampled_from(["left", "right", "holes"]), st.data())
def test_a_padded_row_is_the_row_alone(found, side, data):
    total, batch = 90, 3
    q, k, v = tensors(batch, 4, 2, total)
    mask = torch.ones(batch, total, dtype=torch.bool)
    for row in range(batch):
        pads = data.draw(st.integers(0, total - 1))
        begin = data.draw(st.integers(0, total - pads)) if side == "holes" else 0
        begin = total - pads if side == "right" else begin
        mask[row, begin : begin + pads] = False
    options = {"rotary": RotaryLayout(RATES), "settings": found, "scaling": 0.4}
    for impl in ("reference", "blocked"):
        got = self_extend_attention(q, k, v, key_mask=mask, impl=impl, **options)
        for row in range(batch):
            here = mask[row]
            wanted = dense(q[row][:, here], k[row][:, here], v[row][:, here], found, scaling=0.4)
            torch.testing.assert_close(got[row][:, here], wanted, rtol=0, atol=1e-11)
            assert not got[row][:, ~here].any()


@settings(max_examples=30, deadline=None)
@given(some_map, st.integers(1, 150), st.sampled_from([torch.float32, torch.bfloat16]))
def test_blocked_errs_no_more_than_its_precision_does(found, total, dtype):
    """As `test_blocked`: roundings of the output, one for each part that is merged and its merge.

    A query has at most six parts, of `AdaGroPE`.
    """
    q, k, v = tensors(1, 2, 2, total, dtype=dtype)
    options = {"rotary": RotaryLayout(RATES), "settings": found, "scaling": 0.4}
    exact = self_extend_attention(*(x.double() for x in (q, k, v)), impl="reference", **options)
    own, error = (
        (self_extend_attention(q, k, v, impl=impl, **options).double() - exact).abs().max()
        for impl in ("reference", "blocked")
    )
    unit = torch.finfo(dtype).eps * exact.abs().max()
    assert error <= 1.5 * own + 6 * unit


@settings(max_examples=60, deadline=None)
@given(some_map, st.integers(2, 150), st.integers(1, 4), st.sampled_from([None, 3.0]))
def test_the_mass_of_keys_is_that_of_the_dense_softmax(found, total, count, softcap):
    q, k, _ = tensors(1, 4, 2, total)
    count = min(count, total)
    asked = q[0, :, total - count :]
    rotary = RotaryLayout(RATES)
    spec = AttentionSpec.of(found, rotary=rotary, scaling=0.4, softcap=softcap)
    got = attention_mass(asked, k[0], spec, positions=torch.arange(total - count, total))
    eye = torch.eye(total, dtype=torch.float64).expand(2, -1, -1)
    weights = dense(asked, k[0], eye, found, scaling=0.4, softcap=softcap)
    torch.testing.assert_close(got.double(), weights.sum(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("found", MAPS[:-1], ids=lambda found: found.name)
def test_kernels_for_gpus_refuse_other_maps_by_name(found, monkeypatch):
    """Whatever the machine: on this one they could not run at all."""
    monkeypatch.setattr("selfextend_rag.attention.api.why_not", lambda *given: "")
    q, k, v = tensors(1, 2, 2, 40, dtype=torch.float32)
    options = {"rotary": RotaryLayout(RATES), "settings": found}
    with pytest.raises(ValueError, match=f"SelfExtend alone, not {found.name}"):
        self_extend_attention(q, k, v, impl="triton", **options)
    spec = AttentionSpec.of(found, rotary=RotaryLayout(RATES), scaling=0.4)
    attend(q, k, v, spec)  # "auto" takes another implementation


def test_the_bands_of_self_extend_give_the_same_numbers_as_ever():
    """To the last bit: a spec made of settings is the spec of their two bands."""
    q, k, v = tensors(1, 4, 2, 120, dtype=torch.float32)
    method, rotary = SelfExtend(3, 10), RotaryLayout(RATES)
    spec = AttentionSpec(rotary=rotary, bands=method.bands, scaling=0.4)
    made = AttentionSpec.of(method, rotary=rotary, scaling=0.4)
    assert torch.equal(attend(q, k, v, spec), attend(q, k, v, made))
