"""Kept rotated keys are what a fresh rotation gives, whatever came and went before."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag import SelfExtend
from selfextend_rag.attention import AttentionSpec, GroupedKeys
from selfextend_rag.rope import RotaryLayout

ROTARY = RotaryLayout((1.0, 0.3))
METHOD = SelfExtend(3, 6)
SPEC = AttentionSpec(rotary=ROTARY, bands=METHOD.bands, scaling=1.0)
SLOTS = 40
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["one query", "several queries", "replaced from"]), st.integers(7, SLOTS)
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, starts=st.sampled_from([(0, 0), (2, 2), (0, 3)]), capacity=st.integers(0, 50))
def test_slots_hold_what_a_fresh_rotation_gives(steps, starts, capacity):
    torch.manual_seed(0)
    k = torch.randn(2, 2, SLOTS, 4, dtype=torch.float64)
    store = GroupedKeys()
    for what, place in steps:
        if what == "replaced from":
            k[:, :, place:] = torch.randn_like(k[:, :, place:])
            store.forget(place)
            continue
        end, alone = place - METHOD.neighbor_window, what == "one query"
        kept = store.reach(
            k[:, :, :place], end, SPEC, starts=starts, neighbors=alone, capacity=capacity
        )
        positions = torch.arange(SLOTS) - torch.tensor(starts)[:, None]
        grouped = ROTARY.rotate(k, METHOD.bands[-1].key_position(positions))
        assert torch.equal(kept[:, :, :end], grouped[:, :, :end])
        if alone:
            near = ROTARY.rotate(k, positions)
            assert torch.equal(kept[:, :, end:place], near[:, :, end:place])


def test_each_key_is_rotated_once_as_neighbor_and_once_as_far_one(monkeypatch):
    k = torch.randn(1, 1, SLOTS, 4)
    store, rotated = GroupedKeys(), []
    real = RotaryLayout.rotate

    def rotate(layout, x, *args, **kwargs):
        rotated.append(x.shape[2])
        return real(layout, x, *args, **kwargs)

    monkeypatch.setattr(RotaryLayout, "rotate", rotate)
    window = METHOD.neighbor_window
    for total in range(20, SLOTS + 1):
        store.reach(k[:, :, :total], total - window, SPEC, neighbors=True, capacity=SLOTS)
    assert rotated == [20 - window, window] + [1, 1] * (SLOTS - 20)
