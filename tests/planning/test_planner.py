"""The planner against a search over every distance that attention would see."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan, PlanRemark
from selfextend_rag.positions import SelfExtend


def farthest_position(length: int, settings: SelfExtend) -> int:
    """The largest relative position of any pair, found by looking at the last query's keys."""
    return max(settings.relative_position(length - 1, key) for key in range(length))


def obeys_the_rule(
    length: int, settings: SelfExtend, window: int, share: Fraction = Fraction(2, 3)
) -> bool:
    """The authors' rule as they write it, in exact arithmetic."""
    W, G = settings.neighbor_window, settings.group_size
    return length <= W or W + Fraction(length - W, G) <= share * window


windows = st.integers(min_value=8, max_value=120)
shares = st.fractions(min_value=Fraction(1, 2), max_value=1, max_denominator=12)


@settings(max_examples=150, deadline=None)
@given(windows, st.integers(1, 900), st.integers(0, 20), st.integers(0, 20), shares)
def test_an_extended_plan_obeys_both_limits_and_no_milder_one_does(P, prompt, answer, reserve, rho):
    planner = ContextBudgetPlanner(P, rho, max_group_size=16)
    total = prompt + answer + reserve
    allowed = [
        SelfExtend(G, W)
        for G in range(2, 17)
        for W in [max(w for w in range(P // 4 + 1) if w % G == 0)]
        if W > 0
    ]
    good = [
        s for s in allowed if obeys_the_rule(total, s, P, rho) and farthest_position(total, s) < P
    ]
    if total <= P:
        assert planner.plan(prompt, answer, reserve_tokens=reserve).settings is None
    elif good:
        plan = planner.plan(prompt, answer, reserve_tokens=reserve)
        assert plan.settings == good[0]
        assert plan.neighbor_window % plan.group_size == 0
        assert plan.total_tokens == total
    else:
        with pytest.raises(ContextBudgetExceeded):
            planner.plan(prompt, answer, reserve_tokens=reserve)


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(1, 20), shares, st.integers(0, 40))
def test_what_the_error_calls_available_is_exactly_what_fits(P, largest, rho, too_many):
    planner = ContextBudgetPlanner(P, rho, max_group_size=largest)
    with pytest.raises(ContextBudgetExceeded) as caught:
        planner.plan(P * P * 25, 0)
    available = caught.value.available
    assert planner.plan(available, 0).total_tokens == available
    with pytest.raises(ContextBudgetExceeded) as caught:
        planner.plan(available + 1 + too_many, 0)
    assert caught.value.excess == 1 + too_many


@settings(max_examples=80, deadline=None)
@given(windows, st.integers(1, 12), st.data())
def test_a_group_size_named_as_a_remedy_is_one(P, largest, data):
    planner = ContextBudgetPlanner(P, max_group_size=largest)
    total = data.draw(st.integers(P + 1, P * P))
    try:
        planner.plan(total, 0)
    except ContextBudgetExceeded as error:
        named = [r for r in error.remedies if r.startswith("allow group_size ")]
        for remedy in named:
            size = int(remedy.removeprefix("allow group_size ").split()[0])
            assert ContextBudgetPlanner(P, max_group_size=size).plan(total, 0).group_size == size
            with pytest.raises(ContextBudgetExceeded):
                ContextBudgetPlanner(P, max_group_size=size - 1).plan(total, 0)
        if not named:
            with pytest.raises(ContextBudgetExceeded):
                ContextBudgetPlanner(P, max_group_size=10**6).plan(total, 0)


@pytest.mark.parametrize(
    ("P", "tokens", "expected"),
    [
        (512, 512, None),  # the bundled model
        (512, 513, SelfExtend(2, 128)),
        (4096, 16_000, SelfExtend(9, 1017)),  # 1017 + 14983/9 = 2682 <= 2730; 8: 1024 + 1872
        (32_768, 44_000, SelfExtend(3, 8190)),  # 8190 + 35810/3 = 20127 <= 21845; 2: 26096
    ],
)
def test_worked_examples(P, tokens, expected):
    assert ContextBudgetPlanner(P).plan(tokens, 0).settings == expected


def test_a_neighbor_window_of_the_caller_is_kept_and_divided_by_the_group_size():
    planner = ContextBudgetPlanner(512, neighbor_window=100)
    sizes = {planner.plan(n, 0).group_size for n in range(513, planner_limit(planner), 50)}
    assert sizes
    assert all(100 % size == 0 for size in sizes)
    assert planner.plan(600, 0).neighbor_window == 100


def planner_limit(planner: ContextBudgetPlanner) -> int:
    with pytest.raises(ContextBudgetExceeded) as caught:
        planner.plan(10**9, 0)
    return caught.value.available


def test_a_group_size_of_the_caller_is_bounded_by_the_exact_window_alone():
    planner = ContextBudgetPlanner(512, group_size=8, neighbor_window=128)
    window = SelfExtend(8, 128).extended_window(512)
    assert planner.plan(window, 0).settings == SelfExtend(8, 128)
    with pytest.raises(ContextBudgetExceeded, match=r"\(group_size 8\)"):
        planner.plan(window + 1, 0)
    assert planner.plan(512, 0).settings is None


def test_a_larger_share_needs_a_smaller_group_size():
    assert ContextBudgetPlanner(512, 1).plan(2000, 0).group_size < (
        ContextBudgetPlanner(512, Fraction(1, 2)).plan(2000, 0).group_size
    )


def test_a_share_given_as_a_float_is_read_as_written():
    exact = ContextBudgetPlanner(1000, Fraction(66, 100))
    assert ContextBudgetPlanner(1000, 0.66).limit(SelfExtend(2, 250)) == exact.limit(
        SelfExtend(2, 250)
    )


def test_always_extends_what_would_fit():
    assert ContextBudgetPlanner(512, extension="always").plan(300, 0).settings == SelfExtend(1, 128)
    assert ContextBudgetPlanner(512, extension="always", group_size=8).plan(
        300, 0
    ).settings == SelfExtend(8, 128)


def test_never_runs_plain_at_any_length_and_says_so():
    plan = ContextBudgetPlanner(512, extension="never").plan(5000, 10)
    assert plan.settings is None
    assert "do not expect sense" in plan.explain()


def test_the_message_has_the_figures_and_the_remedies():
    planner = ContextBudgetPlanner(4096, max_group_size=8)
    with pytest.raises(ContextBudgetExceeded) as caught:
        planner.plan(41_200, 256)
    error = caught.value
    assert error.needed == 41_456
    assert error.available == planner.limit(SelfExtend(8, 1024))
    assert str(error) == (
        f"prompt of 41200 tokens + 256 for the answer exceeds the extended window of "
        f"{error.available} (group_size 8); drop {error.excess} tokens or allow group_size 24 "
        "by max_group_size=24 (far positions 3 times as coarse as with 8) or take a model trained "
        "on about 11570 tokens"
    )
    assert not isinstance(error, ValueError)  # frameworks answer "nothing" to those


def test_a_continued_prompt_is_bounded_by_the_window_it_began_in():
    planner = ContextBudgetPlanner(512)
    earlier = planner.plan(2000, 32, reserve_tokens=48)
    window = earlier.extended_window
    later = planner.plan_within(earlier, window - 10, 10)
    assert later.settings == earlier.settings
    assert (later.total_tokens, later.reserve_tokens) == (window, 0)
    with pytest.raises(ContextBudgetExceeded, match="first 2000 tokens were read") as caught:
        planner.plan_within(earlier, window - 10, 13)
    assert caught.value.excess == 3
    assert "drop 3 tokens of question and answer" in str(caught.value)
    plain = ContextBudgetPlanner(512, extension="never")
    assert plain.plan_within(plain.plan(900, 1), 1000, 1).settings is None


@given(windows, st.sampled_from(["auto", "always"]), st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_the_extended_window_is_the_longest_that_is_planned(P, extension, largest):
    planner = ContextBudgetPlanner(P, extension=extension, max_group_size=largest)
    window = planner.extended_window
    assert planner.plan(window, 0).total_tokens == window
    with pytest.raises(ContextBudgetExceeded):
        planner.plan(window + 1, 0)


def test_explanations_name_every_figure():
    plan = ContextBudgetPlanner(512).plan(2000, 32, reserve_tokens=48)
    words = plan.explain()
    for figure in (2000, 32, 48, 2080, 512, plan.group_size, plan.neighbor_window):
        assert str(figure) in words
    assert str(plan.extended_window) in words
    assert "runs plain" in ContextBudgetPlanner(512).plan(100, 32).explain()


@given(windows, st.integers(0, 400), st.integers(0, 20), st.sampled_from(["auto", "always"]))
@settings(max_examples=50, deadline=None)
def test_a_plan_survives_json(P, prompt, answer, extension):
    try:
        plan = ContextBudgetPlanner(P, extension=extension).plan(prompt, answer)
    except ContextBudgetExceeded:
        return
    values = json.loads(json.dumps(plan.to_dict()))
    assert ContextPlan.from_dict(values) == plan
    assert values["extended_window"] == plan.extended_window


def test_a_plan_says_what_its_documents_lack():
    remark = PlanRemark("scan.pdf", "loss", "2 of 5 pages have no text")
    planner = ContextBudgetPlanner(512)
    plan = planner.plan(2000, 32, remarks=[remark])
    assert plan.explain().endswith("\nscan.pdf: 2 of 5 pages have no text (loss)")
    assert plan.explain().startswith(planner.plan(2000, 32).explain())
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["remarks"] == [
        {"document": "scan.pdf", "severity": "loss", "message": "2 of 5 pages have no text"}
    ]
    assert ContextPlan.from_dict(values) == plan
    del values["remarks"]  # as plans were written before
    assert ContextPlan.from_dict(values) == planner.plan(2000, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretraining_window": 4}, "pretraining_window"),
        ({"trained_fraction": 0}, "trained_fraction"),
        ({"trained_fraction": 1.5}, "trained_fraction"),
        ({"neighbor_window": 512}, "neighbor_window"),
        ({"neighbor_window": 0}, "neighbor_window"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": 129}, "group_size must be from 1 to the neighbor window of 128"),
        ({"max_group_size": 0}, "max_group_size"),
        ({"extension": "sometimes"}, "extension"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ContextBudgetPlanner(**{"pretraining_window": 512, **options})


@pytest.mark.parametrize("figures", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_negative_numbers_of_tokens_are_refused(figures):
    prompt, answer, reserve = figures
    with pytest.raises(ValueError, match="must not be negative"):
        ContextBudgetPlanner(512).plan(prompt, answer, reserve_tokens=reserve)
