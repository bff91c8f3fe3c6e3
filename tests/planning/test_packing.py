"""Groups of whole documents against a search over every way of grouping."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.errors import DocumentTooLarge
from selfextend_rag.planning import ContextBudgetPlanner
from selfextend_rag.planning.packing import EXACT_UP_TO, lower_bound, pack
from selfextend_rag.planning.refusals import to_drop


def fewest_by_search(sizes, room):
    """Try every document in every group so far, and in one of its own."""
    best = len(sizes)

    def place(index, rooms):
        nonlocal best
        if len(rooms) >= best and index < len(sizes):
            return
        if index == len(sizes):
            best = min(best, len(rooms))
            return
        for group in range(len(rooms)):
            if rooms[group] >= sizes[index]:
                place(index + 1, [r - sizes[index] * (g == group) for g, r in enumerate(rooms)])
        place(index + 1, [*rooms, room - sizes[index]])

    place(0, [])
    return best


rooms = st.integers(1, 60)


@settings(max_examples=300, deadline=None)
@given(rooms.flatmap(lambda r: st.tuples(st.just(r), st.lists(st.integers(0, r), max_size=8))))
def test_up_to_a_dozen_documents_the_number_of_groups_is_the_fewest(case):
    room, sizes = case
    found = pack(sizes, room)
    assert len(found.groups) == fewest_by_search(sizes, room)
    assert found.optimal
    assert lower_bound(sizes, room) <= len(found.groups)


@settings(max_examples=150, deadline=None)
@given(rooms.flatmap(lambda r: st.tuples(st.just(r), st.lists(st.integers(1, r), max_size=80))))
def test_every_document_is_in_one_group_that_holds_it(case):
    room, sizes = case
    found = pack(sizes, room)
    assert sorted(i for group in found.groups for i in group) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group) <= room for group in found.groups)
    assert all(list(group) == sorted(group) for group in found.groups)
    assert [g[0] for g in found.groups] == sorted(g[0] for g in found.groups)
    assert found.lower_bound <= len(found.groups)
    assert found.lower_bound >= -(-sum(sizes) // room)


def test_beyond_a_dozen_documents_groups_that_best_fit_misses_are_found():
    sizes = [6, 5, 5, 4, 4, 3, 3] * 4  # 120 tokens, and largest first takes 13 groups of ten
    assert len(sizes) > EXACT_UP_TO
    found = pack(sizes, 10)
    assert len(found.groups) == 12
    assert found.optimal


@pytest.mark.parametrize("sizes", [[11], [3, -1]])
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match="from 0 to the capacity of 10"):
        pack(sizes, 10)


def test_each_group_is_a_plan_that_holds():
    planner = ContextBudgetPlanner(512, max_group_size=4)
    sizes = [300, 700, 50, 800, 200, 400]
    found = planner.plan_groups(sizes, 30, reserve_tokens=40, frame_tokens=12, turns=2)
    assert found.optimal
    for group, plan in zip(found.groups, found.plans, strict=True):
        assert plan.prompt_tokens == 12 + sum(sizes[i] for i in group)
        assert plan.total_tokens == plan.prompt_tokens + 2 * 70 <= planner.extended_window
    assert planner.plan_groups([], 30).groups == ()


def test_a_document_that_fits_no_group_is_named():
    planner = ContextBudgetPlanner(512, max_group_size=4)
    room = planner.extended_window - 70
    found = planner.plan_groups([5, room], 30, reserve_tokens=40)
    assert len(found.groups) == 2
    with pytest.raises(DocumentTooLarge) as caught:
        planner.plan_groups([5, room + 1], 30, reserve_tokens=40, names=["a", "b"])
    error = caught.value
    assert (error.document, error.index, error.excess) == ("b", 1, 1)
    assert f'the document "b" of {room + 1} tokens fits no prompt by itself' in str(error)
    with pytest.raises(DocumentTooLarge, match="number 2"):
        planner.plan_groups([5, room + 1], 30, reserve_tokens=40)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_what_is_proposed_to_be_dropped_is_enough_and_no_fewer_would_be(sizes, excess):
    dropped = to_drop([(str(i), size) for i, size in enumerate(sizes)], excess)
    if sum(sizes) < excess:
        assert dropped == []
        return
    assert sum(size for _, size in dropped) >= excess
    largest = sorted(sizes, reverse=True)
    assert sum(largest[: len(dropped) - 1]) < excess
