"""Attention over a paged cache of grouped keys, against the dense reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.blocked import blocked_attention
from selfextend_rag.attention.paged import Angles, Pages, paged_attention, plain_attention
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout


def spec_of(group, window, dim=16, heads=4, *, pairing="half", scale=1.0, softcap=None, sinks=None):
    rotary = RotaryLayout(
        tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)), pairing, offset=0, scale=scale
    )
    return AttentionSpec.of(
        SelfExtend(group, window), rotary=rotary, scaling=0.3, softcap=softcap, sinks=sinks
    )


def paged(k, v, spec, blocks, size, spare=3):
    """A cache with these keys ``[1, Hkv, S, D]`` in these blocks, and rubbish in all others."""
    count = max(blocks) + 1 + spare
    keys, values = (torch.full((count, x.shape[1], size, x.shape[3]), 1e9).to(x) for x in (k, v))
    pages, positions = Pages(keys, values), torch.arange(k.shape[2])
    stored = spec.rotary.rotate(k, spec.own_bands[-1].key_position(positions))
    slots = torch.tensor(blocks)[positions // size] * size + positions % size
    pages.store(stored[0].transpose(0, 1), v[0].transpose(0, 1), slots)
    return pages


@st.composite
def cases(draw):
    size, window = draw(st.sampled_from([4, 8, 16])), draw(st.integers(1, 40))
    total = draw(st.sampled_from([1, window, window + 1]) | st.integers(1, 200))
    count = -(-total // size)
    order = draw(st.sampled_from(["rising", "falling", "mixed", "one by one"]))
    blocks = list(range(2, count + 2))
    if order == "falling":
        blocks.reverse()
    elif order == "mixed":
        blocks = draw(st.permutations(blocks))
    elif order == "one by one":
        blocks = [3 * block for block in blocks]
    return {
        "size": size, "total": total, "blocks": blocks,
        "length": draw(st.sampled_from([1, total]) | st.integers(1, total)),
        "group": draw(st.integers(2, 9)), "window": window,
        "kv_heads": draw(st.sampled_from([1, 2, 4])),
        "pairing": draw(st.sampled_from(["half", "interleaved"])),
        "scale": draw(st.sampled_from([1.0, 1.3])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "sinks": draw(st.booleans()),
    }  # fmt: skip


@given(cases())
@settings(max_examples=80, deadline=None)
def test_attention_over_pages_is_the_reference(case):
    make, heads, dim, total = torch.Generator().manual_seed(case["total"]), 4, 16, case["total"]
    q, k, v = (
        torch.randn(1, n, t, dim, generator=make, dtype=torch.float64)
        for n, t in ((heads, case["length"]), (case["kv_heads"], total), (case["kv_heads"], total))
    )
    sinks = torch.randn(heads, generator=make, dtype=torch.float64) if case["sinks"] else None
    spec = spec_of(
        case["group"], case["window"], pairing=case["pairing"], scale=case["scale"],
        softcap=case["softcap"], sinks=sinks,
    )  # fmt: skip
    pages = paged(k, v, spec, case["blocks"], case["size"])
    out = paged_attention(q[0].transpose(0, 1), pages, case["blocks"], total, spec, Angles(spec))
    torch.testing.assert_close(out.transpose(0, 1)[None], reference_attention(q, k, v, spec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_errs_no_more_than_its_precision(dtype):
    """Keys are rounded once when they are stored, and neighbors once more when they are rotated."""
    make, spec, total = torch.Generator().manual_seed(7), spec_of(5, 37), 500
    shapes = ((4, 1), (2, total), (2, total))
    q, k, v = (torch.randn(1, n, t, 16, generator=make) for n, t in shapes)
    pages = paged(k.to(dtype), v.to(dtype), spec, list(range(32)), 16)
    step = q[0].transpose(0, 1).to(dtype)
    out = paged_attention(step, pages, list(range(32)), total, spec, Angles(spec))
    exact = reference_attention(*(x.to(dtype).double() for x in (q, k, v)), spec)
    error = (out.transpose(0, 1)[None].double() - exact).abs().max()
    assert error < 8 * torch.finfo(dtype).eps * v.abs().max()


@pytest.mark.parametrize("length", [1, 100])
def test_in_16_bits_it_errs_no_more_than_attention_that_rounds_each_key_once(length):
    """Neighbors are rounded when they are stored and again when they are rotated on."""
    total, size, spec = 500, 16, spec_of(5, 37, 32)
    blocks, errors = list(range(-(-total // size))), {"once": 0.0, "twice": 0.0}
    for seed in range(6):
        make = torch.Generator().manual_seed(seed)
        shapes = ((4, length), (4, total), (4, total))
        q, k, v = (2 * torch.randn(1, n, t, 32, generator=make).bfloat16() for n, t in shapes)
        exact = reference_attention(q.double(), k.double(), v.double(), spec)
        pages, asked = paged(k, v, spec, blocks, size), q[0].transpose(0, 1)
        out = paged_attention(asked, pages, blocks, total, spec, Angles(spec)).transpose(0, 1)[None]
        for kind, found in (("twice", out), ("once", blocked_attention(q, k, v, spec))):
            errors[kind] += float((found.double() - exact).square().mean().sqrt())
    assert errors["twice"] <= 1.1 * errors["once"], errors


@pytest.mark.parametrize("more", [0, 6])
def test_slots_that_are_nowhere_are_not_written(more):
    """A few tokens, which are stored one by one, and many."""
    pages = Pages(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2))
    slots = torch.tensor([5, -1, 2] + [-1] * more)
    pages.store(torch.ones(3 + more, 1, 2), torch.ones(3 + more, 1, 2), slots)
    assert pages.keys[:, 0, :, 0].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert pages.values.sum() == pages.keys.sum() == 4


def test_steps_of_more_sequences_than_angles_are_kept_for_are_those_of_once():
    spec, like = spec_of(3, 10), torch.zeros(1)
    angles, sizes = Angles(spec), (torch.float32, torch.float64)
    first = {kind: angles.step(50, like.to(kind)) for kind in sizes}
    for position in range(11, 200):
        angles.step(position, like)
    for kind in sizes:
        for ours, again in zip(first[kind], angles.step(50, like.to(kind)), strict=True):
            assert again.cos.dtype == kind
            assert torch.equal(ours.cos, again.cos)


def test_consecutive_blocks_are_read_where_they_are():
    pages = Pages(torch.randn(9, 1, 4, 2), torch.randn(9, 1, 4, 2))
    ((keys, values),) = pages.in_place([5, 4, 3, 6])
    assert keys.data_ptr() == pages.keys[3].data_ptr()
    assert values.data_ptr() == pages.values[3].data_ptr()
    assert len(keys) == 4


def test_tables_that_have_grown_are_those_of_once():
    spec, like = spec_of(3, 10), torch.zeros(1)
    angles = Angles(spec)
    angles.to_own(5, like)
    grown, whole = angles.to_own(9000, like), Angles(spec).to_own(9000, like)
    assert len(grown.cos) >= 9000
    assert torch.equal(grown.sin[:9000], whole.sin[:9000])


@pytest.mark.parametrize("length", [1, 7, 50])
@pytest.mark.parametrize("sinks", [False, True])
def test_plain_attention_over_pages_is_the_reference_without_groups(length, sinks):
    make, total, blocks = torch.Generator().manual_seed(5), 50, [4, 2, 9, 3]
    q, k, v = (
        torch.randn(1, n, t, 16, generator=make, dtype=torch.float64)
        for n, t in ((4, length), (2, total), (2, total))
    )
    given = torch.randn(4, generator=make, dtype=torch.float64) if sinks else None
    spec = spec_of(1, 9, sinks=given)
    pages = paged(k, v, spec, blocks, 16)
    out = plain_attention(q[0].transpose(0, 1), pages, blocks, total, spec)
    torch.testing.assert_close(out.transpose(0, 1)[None], reference_attention(q, k, v, spec))
