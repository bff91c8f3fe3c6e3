"""Maps of positions against what their papers say, pair by pair, and against recorded positions."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.maps import (
    MAPS,
    UNBOUNDED,
    AdaGroPE,
    DualChunk,
    LaMPE,
    LeakyReRoPE,
    ReRoPE,
    String,
    map_from_dict,
)
from selfextend_rag.positions import SelfExtend

CASES = Path(__file__).parents[2] / "shared" / "data" / "map_cases.json"


def recorded(method, settings, tokens):
    """Return the map of a record, which names SelfExtend and lengths in its own way."""
    given = dict(settings)
    if method == "string":
        del given["window"]  # P, which changes no position
    if method == "lampe":
        given["tokens"] = tokens
    return map_from_dict({"method": method.replace("self_extend", "selfextend"), **given})


# What each paper says, one pair at a time; nothing of the package is used.


def rerope(q, k, window):
    return min(q - k, window)


def leaky_rerope(q, k, window, scale):
    d = q - k
    return d if d < window else window + Fraction(d - window, scale)


def string(q, k, shift, local):
    return q - k if q - k < shift else q - k - shift + local


def dual_chunk(q, k, chunk_size, local_window):
    chunk = chunk_size - local_window
    apart = q // chunk - k // chunk
    if apart == 0:
        return q - k
    return (min(q % chunk + chunk, chunk_size) if apart == 1 else chunk_size) - k % chunk


def lampe(q, k, head, tail, mapped, tokens):
    if tokens < 2 * head:
        return q - k
    places = [mapped * i // (tokens - 1) for i in range(tokens)]
    last = max(i for i in range(tokens) if places[i] == places[tail])
    bias, d = head - 1 - places[head], q - k
    if d < head:
        return d
    if d < tokens - last:
        return places[q] + bias - places[k]
    begin = tokens - 1 - last
    return d - begin + places[begin] + bias


def adagrope(d, positions, ratio, target):
    """By spending positions one after another: each is used as often as its part says."""
    held = {g: int(Fraction(str(ratio)) * positions / g) for g in (2**i for i in range(10))}

    def reuses(most, more):
        exact = [g for g, count in held.items() if g < most for _ in range(count)]
        rest = positions - len(exact)
        return exact + [most] * (rest - more) + [most + 1] * more

    most = max(m for m in range(1, target + 1) if m == 1 or sum(reuses(m, 0)) <= target)
    more = max(0, target - sum(reuses(most, 0)))
    reached = 0
    for position, times in enumerate(reuses(most, more)):
        reached += times
        if d < reached:
            return position
    raise AssertionError("beyond the target")


@pytest.mark.skipif(not CASES.exists(), reason="the recorded positions are not in the repository")
def test_every_recorded_position_is_the_map_s():
    for case in json.loads(CASES.read_text())["maps"]:
        found = recorded(case["method"], case["settings"], case["tokens"])
        for query, key, position in case["cases"]:
            assert found.relative_position(query, key) == position, (found, query, key)


@pytest.mark.parametrize(
    ("method", "options", "tokens", "query", "key", "position"),
    [
        ("self_extend", {"group_size": 5, "neighbor_window": 1024}, 16384, 5003, 3979, 1025),
        ("rerope", {"window": 512}, 16384, 2000, 1487, 512),
        ("leaky_rerope", {"window": 512, "scale": 16}, 16384, 16383, 0, 1503.9375),
        ("string", {"shift": 1351, "local": 128, "window": 4096}, 4096, 4095, 0, 2872),
        ("dual_chunk", {"chunk_size": 3072, "local_window": 512}, 16384, 5120, 2559, 513),
        ("lampe", {"head": 512, "tail": 200, "mapped": 1702}, 16384, 16383, 0, 2341),
        ("adagrope", {"positions": 2048, "ratio": 0.25, "target": 16384}, 16384, 11766, 2029, 1551),
    ],
)
def test_published_settings_give_the_published_positions(
    method, options, tokens, query, key, position
):
    assert recorded(method, options, tokens).relative_position(query, key) == position


pairs = st.tuples(st.integers(0, 299), st.integers(0, 299)).map(lambda p: (max(p), min(p)))


@settings(max_examples=300, deadline=None)
@given(pairs, st.integers(1, 60), st.integers(1, 9))
def test_rerope_and_leaky_rerope(pair, window, scale):
    q, k = pair
    assert ReRoPE(window).relative_position(q, k) == rerope(q, k, window)
    found = LeakyReRoPE(window, scale).relative_position(q, k)
    assert found == float(leaky_rerope(q, k, window, scale))


@settings(max_examples=300, deadline=None)
@given(pairs, st.integers(1, 60), st.integers(1, 60))
def test_string_and_dual_chunk(pair, one, other):
    q, k = pair
    less, more = sorted((one, other))
    assert String(more, less).relative_position(q, k) == string(q, k, more, less)
    found = DualChunk(more + 1, less).relative_position(q, k)
    assert found == dual_chunk(q, k, more + 1, less)


@settings(max_examples=300, deadline=None)
@given(pairs, st.integers(1, 60), st.integers(0, 60), st.integers(1, 200))
def test_lampe(pair, head, tail, mapped):
    q, k = pair
    tail = min(tail, head)
    found = LaMPE(head, tail, mapped, 300).relative_position(q, k)
    assert found == lampe(q, k, head, tail, mapped, 300)


@settings(max_examples=300, deadline=None)
@given(pairs, st.integers(8, 120), st.sampled_from([0.125, 0.2, 0.25, 0.5]))
def test_adagrope(pair, positions, ratio):
    q, k = pair
    found = AdaGroPE(positions, ratio, 300).relative_position(q, k)
    assert found == adagrope(q - k, positions, ratio, 300)


@pytest.mark.parametrize("target", range(40, 400, 7))
def test_adagrope_reaches_its_target_with_its_last_position(target):
    found = AdaGroPE(40, 0.25, target)
    assert found.relative_position(target - 1, 0) == 39
    assert found.relative_position(target, 0) == 40


def farthest(found, tokens):
    return max(found.relative_position(tokens - 1, k) for k in range(tokens))


@pytest.mark.parametrize(
    "found",
    [LeakyReRoPE(7, 3), LeakyReRoPE(5, 4), String(20, 6), String(24, 24), AdaGroPE(24, 0.25, 90)],
)
def test_the_extended_window_is_the_last_length_that_fits(found):
    longest = found.extended_window(24)
    assert all(farthest(found, n) < 24 for n in range(1, longest + 1))
    assert farthest(found, longest + 1) >= 24


@pytest.mark.parametrize("found", [ReRoPE(23), DualChunk(23, 6)])
def test_some_maps_reach_any_length(found):
    assert found.extended_window(24) == UNBOUNDED
    assert all(farthest(found, n) < 24 for n in range(1, 200))


@pytest.mark.parametrize("tokens", [30, 100, 300])
def test_lampe_reaches_its_own_length_or_refuses_it(tokens):
    found = LaMPE(12, 4, 20, tokens)
    reached = max(farthest(found, n) for n in range(1, tokens + 1))
    assert found.extended_window(int(reached) + 1) == tokens
    with pytest.raises(ValueError, match="mapped must be smaller"):
        found.extended_window(int(reached))


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (ReRoPE, {"window": 0}, "window"),
        (ReRoPE, {"window": 4, "log_scaled": 1}, "log_scaled"),
        (LeakyReRoPE, {"window": 4, "scale": 1.5}, "scale"),
        (String, {"shift": 4, "local": 5}, "local"),
        (DualChunk, {"chunk_size": 4, "local_window": 4}, "local_window"),
        (LaMPE, {"head": 4, "tail": 5, "mapped": 3, "tokens": 50}, "tail"),
        (AdaGroPE, {"positions": 8, "ratio": 0.7, "target": 50}, "ratio"),
        (AdaGroPE, {"positions": 3, "ratio": 0.25, "target": 50}, "ratio"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(kind, options, named):
    with pytest.raises(ValueError, match=named):
        kind(**options)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (ReRoPE(24), "window"),
        (LeakyReRoPE(24, 2), "window"),
        (String(25, 6), "shift"),
        (DualChunk(24, 6), "chunk_size"),
        (AdaGroPE(25, 0.25, 90), "positions"),
    ],
)
def test_maps_that_do_not_fit_a_window_are_refused_by_name(found, named):
    with pytest.raises(ValueError, match=named):
        found.extended_window(24)


def test_maps_of_equal_figures_are_not_equal():
    """Keys cached under one map must not be taken for another's."""
    same = [ReRoPE(4), ReRoPE(4, 8), String(4, 4), DualChunk(4, 2), SelfExtend(4, 4)]
    assert len(set(same)) == len(same)
    assert String(4, 4) != SelfExtend(4, 4)
    assert {found.name for found in same} < {*MAPS, "selfextend"}
