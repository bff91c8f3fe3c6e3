"""Blocked SelfExtend attention against the dense reference in float64."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selfextend_rag.attention import GroupedKeys, blocked, self_extend_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout


def layout(dim: int, **kwargs) -> RotaryLayout:
    return RotaryLayout(tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)), **kwargs)


def tensors(seed, batch, heads, kv_heads, length, total, dim, value_dim, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads, length, dim),
        (batch, kv_heads, total, dim),
        (batch, kv_heads, total, value_dim),
    )
    return [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for shape in shapes]


@st.composite
def cases(draw):
    window = draw(st.integers(1, 40))
    total = draw(st.sampled_from([1, window - 1, window, window + 1]) | st.integers(1, 300))
    total = max(1, total)
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    batch = draw(st.integers(1, 3))
    mask = draw(st.sampled_from(["none", "left", "right", "holes"]))
    key_mask = None
    if mask != "none":
        key_mask = torch.ones(batch, total, dtype=torch.bool)
        for row in range(batch):
            pads = draw(st.integers(0, total - 1))
            if mask == "left":
                key_mask[row, :pads] = False
            elif mask == "right":
                key_mask[row, total - pads :] = False
            else:
                begin = draw(st.integers(0, total - 1))
                key_mask[row, begin : begin + pads] = False
    dim = draw(st.sampled_from([8, 12]))
    return {
        "seed": draw(st.integers(0, 999)),
        "batch": batch,
        "heads": kv_heads * draw(st.sampled_from([1, 2, 4])),
        "kv_heads": kv_heads,
        "total": total,
        "length": draw(st.sampled_from([1, total]) | st.integers(1, total)),
        "dim": dim,
        "value_dim": draw(st.sampled_from([dim, 4, 16])),
        "rotary": draw(
            st.sampled_from(
                [
                    layout(dim),
                    layout(dim, pairing="interleaved"),
                    layout(dim - 4, sign=-1),
                    layout(4, offset=dim - 4, scale=1.3),
                    layout(4, offset=2, pairing="interleaved", sign=-1),
                ]
            )
        ),
        "settings": SelfExtend(draw(st.integers(1, 9)), window),
        "key_mask": key_mask,
        "softcap": draw(st.sampled_from([None, None, 5.0])),
        "with_sinks": draw(st.booleans()),
        "few_heads_at_once": draw(st.booleans()),
    }


@contextmanager
def heads_at_once(case):
    """Let short tensors, too, be done a few heads at a time."""
    worth = 0 if case["few_heads_at_once"] else blocked._WORTH_SPLITTING
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(blocked, "_WORTH_SPLITTING", worth):
            yield
    finally:
        torch.set_num_threads(threads)


def run_both(case, dtype):
    q, k, v = tensors(
        case["seed"], case["batch"], case["heads"], case["kv_heads"], case["length"],
        case["total"], case["dim"], case["value_dim"], dtype,
    )  # fmt: skip
    sinks = (
        torch.linspace(-1, 2, case["heads"], dtype=torch.float64) if case["with_sinks"] else None
    )
    options = {name: case[name] for name in ("rotary", "settings", "key_mask", "softcap")}
    options["sinks"] = sinks
    exact = self_extend_attention(q.double(), k.double(), v.double(), impl="reference", **options)
    same = self_extend_attention(q, k, v, impl="reference", **options)
    with heads_at_once(case):
        in_blocks = self_extend_attention(q, k, v, impl="blocked", **options)
    return exact, same, in_blocks


@settings(max_examples=250, deadline=None)
@given(cases())
def test_blocked_is_the_reference_in_float64(case):
    exact, _, in_blocks = run_both(case, torch.float64)
    torch.testing.assert_close(in_blocks, exact, rtol=0, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_blocked_errs_no_more_than_its_precision_does(case, dtype):
    """Against float64 on the same rounded inputs.

    The unit is the rounding of the output at the size of the largest value, times the steps in
    which a blocked result is rounded: each of up to three parts, and each of two merges. Where that
    is not enough, the reference may have been lucky with a handful of numbers: its error is then
    the largest of eight draws of such a case.
    """
    size, own, error = errors(case, dtype)
    unit = torch.finfo(dtype).eps * size
    if error > 1.5 * own + 3 * unit:
        draws = [errors({**case, "seed": 1000 + draw}, dtype) for draw in range(8)]
        own = max(own, size * max(other / its_size for its_size, other, _ in draws))
    assert error <= 1.5 * own + 3 * unit


def errors(case, dtype):
    """The largest number, and how far the reference and blocked attention are off at most."""
    exact, same, in_blocks = run_both(case, dtype)
    own, error = same.double() - exact, in_blocks.double() - exact
    return [float(x.abs().max()) for x in (exact, own, error)]


@pytest.mark.parametrize("length", [0, 3])
def test_shapes_that_do_not_fit_are_refused(length):
    q, k, v = tensors(0, 1, 2, 2, length, 2, 8, 8)
    with pytest.raises(ValueError, match="query length"):
        self_extend_attention(q, k, v, rotary=layout(8), settings=SelfExtend(2, 4))


@settings(max_examples=60, deadline=None)
@given(cases(), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_kept_grouped_keys_change_nothing_from_chunk_to_chunk(case, chunks):
    """Prefill in chunks and decode with one store equals the whole at once, left-padded or not."""
    mask = case["key_mask"]
    if mask is not None:
        counts = mask.sum(-1)
        mask = torch.arange(case["total"]) >= (case["total"] - counts)[:, None]
    q, k, v = tensors(
        case["seed"], case["batch"], case["heads"], case["kv_heads"], case["total"],
        case["total"], case["dim"], case["value_dim"],
    )  # fmt: skip
    options = {"rotary": case["rotary"], "settings": case["settings"]}
    whole = self_extend_attention(q, k, v, impl="reference", key_mask=mask, **options)
    store, done, step = GroupedKeys(), 0, 0
    while done < case["total"]:
        end = min(case["total"], done + (chunks[step] if step < len(chunks) else 1))
        with heads_at_once(case):
            out = self_extend_attention(
                q[:, :, done:end], k[:, :, :end], v[:, :, :end],
                key_mask=None if mask is None else mask[:, :end],
                impl="blocked", grouped_keys=store, capacity=end + 16, **options,
            )  # fmt: skip
        torch.testing.assert_close(out, whole[:, :, done:end], rtol=0, atol=1e-12)
        done, step = end, step + 1


@pytest.mark.parametrize("group_size", [1, 5])
def test_inside_the_window_or_without_groups_it_is_causal_attention(group_size):
    q, k, v = tensors(3, 2, 4, 2, 50, 50, 16, 16)
    rotary = layout(16)
    settings = SelfExtend(group_size, 50 if group_size > 1 else 7)
    out = self_extend_attention(q, k, v, rotary=rotary, settings=settings)
    rotated = [rotary.rotate(x, torch.arange(50)) for x in (q, k)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *rotated, v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@example(7, 5)
@given(st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_a_far_key_is_seen_at_its_grouped_position(group_size, window):
    """One distinguishable key: its score depends on the relative position of the method alone."""
    method, total = SelfExtend(group_size, window), 60
    rotary = layout(8)
    q = torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for key in range(0, total, 7):
        k = torch.zeros(1, 1, total, 8, dtype=torch.float64)
        k[0, 0, key] = q[0, 0, 0]
        v = torch.zeros(1, 1, total, 1, dtype=torch.float64)
        v[0, 0, key] = 1
        weight = self_extend_attention(q, k, v, rotary=rotary, settings=method).item()
        there = torch.tensor([method.relative_position(total - 1, key)])
        score = (rotary.rotate(q, there) * q).sum() / 8**0.5
        expected = (score.exp() / (score.exp() + total - 1)).item()
        assert weight == pytest.approx(expected, abs=1e-12)


def test_gradients_take_the_reference_and_blocked_refuses_them():
    q, k, v = tensors(0, 1, 2, 2, 9, 9, 8, 8)
    q.requires_grad_()
    out = self_extend_attention(q, k, v, rotary=layout(8), settings=SelfExtend(2, 4))
    out.sum().backward()
    assert q.grad is not None
    with pytest.raises(ValueError, match="no gradients"):
        self_extend_attention(q, k, v, rotary=layout(8), settings=SelfExtend(2, 4), impl="blocked")


def test_sixteen_bits_and_wide_heads_get_wide_tiles():
    def tile(dim, dtype, length=1000):
        return blocked._tile(torch.empty(1, 1, length, dim, dtype=dtype))

    assert tile(64, torch.bfloat16) == tile(128, torch.float32) == 32
    assert tile(128, torch.bfloat16) == tile(256, torch.float16) == 256
    assert tile(128, torch.bfloat16, 100) == 100


def flash_of_cuda(
    q, k, v, _q_lengths, _k_lengths, max_q, max_k, dropout, causal, _debug, *,
    scale, window_size_left, window_size_right,
):  # fmt: skip
    """What `torch.ops.aten._flash_attention_forward` documents, in float64: ``[B, T, H, D]``."""
    q, k, v = (x.transpose(1, 2).double() for x in (q, k, v))
    assert (max_q, max_k, dropout, causal) == (q.shape[2], k.shape[2], 0.0, window_size_right == 0)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    last = torch.arange(max_q)[:, None] + max_k - max_q
    distance = last - torch.arange(max_k)
    unseen = (distance < 0) & (window_size_right == 0)
    if window_size_left >= 0:
        unseen |= distance > window_size_left
    scores = (q @ k.mT * scale).masked_fill(unseen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1), None, None, None


@pytest.mark.parametrize("length", [1, 20, 150])
def test_two_passes_of_the_flash_attention_for_cuda_are_one_softmax(length, monkeypatch):
    """The grouped square and the window of the library's kernel, with a stand-in for it."""
    q, k, v = tensors(0, 2, 4, 2, length, 150, 8, 8)
    options = {"rotary": layout(8), "settings": SelfExtend(3, 40)}
    expected = self_extend_attention(q, k, v, impl="reference", **options)
    calls = []

    def stand_in(*args, **kwargs):
        calls.append(kwargs["window_size_left"])
        return flash_of_cuda(*args, **kwargs)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", stand_in)
    for module in ("partial", "blocked"):
        monkeypatch.setattr(f"selfextend_rag.attention.{module}.cuda_flash_fits", lambda q, v: True)
    out = self_extend_attention(q, k, v, impl="blocked", **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert (39 in calls) == (length > 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocked_on_cuda_errs_no_more_than_its_precision_does(dtype):
    q, k, v = (x.cuda() for x in tensors(0, 2, 4, 2, 333, 777, 64, 64, dtype))
    options = {"rotary": layout(64), "settings": SelfExtend(3, 100)}
    exact = self_extend_attention(q.double(), k.double(), v.double(), impl="reference", **options)
    same = self_extend_attention(q, k, v, impl="reference", **options)
    out = self_extend_attention(q, k, v, impl="blocked", **options)
    unit = torch.finfo(dtype).eps * exact.abs().max()
    own = (same.double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 1.5 * own + 3 * unit
