"""The method's arithmetic against a search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfextend_rag.positions import SelfExtend


def relative_by_definition(q, k, window, group):
    return q - k if q - k < window else (q // group + window - window // group) - k // group


def farthest_by_search(length, window, group):
    return max(
        relative_by_definition(q, k, window, group) for q in range(length) for k in range(q + 1)
    )


@pytest.mark.parametrize(
    ("P", "W", "G"), [(13, 4, 2), (13, 5, 3), (24, 7, 5), (24, 23, 2), (9, 8, 1)]
)
def test_extended_window_is_the_last_length_that_fits(P, W, G):
    n = SelfExtend(G, W).extended_window(P)
    assert farthest_by_search(n, W, G) == P - 1
    assert farthest_by_search(n + 1, W, G) == P


@pytest.mark.parametrize(
    ("P", "W", "G"), [(4096, 1024, 5), (4096, 2048, 15), (8192, 4096, 3), (8192, 2048, 4)]
)
def test_the_formula_of_the_paper_promises_w_mod_g_tokens_too_many(P, W, G):
    """Settings published for Llama-2 and Llama-3; arXiv 2401.01325."""
    assert SelfExtend(G, W).extended_window(P) == (P - W) * G + W - W % G


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 300), st.integers(0, 300))
def test_relative_position_is_the_definition(G, W, a, b):
    q, k = max(a, b), min(a, b)
    assert SelfExtend(G, W).relative_position(q, k) == relative_by_definition(q, k, W, G)


@given(st.integers(1, 9), st.integers(1, 40))
def test_grouped_positions_of_tensors_are_those_of_integers(G, W):
    far, positions = SelfExtend(G, W).bands[-1], torch.arange(50)
    assert far.key_position(positions).tolist() == [far.key_position(i) for i in range(50)]
    assert far.query_position(positions).tolist() == [far.query_position(i) for i in range(50)]


@pytest.mark.parametrize("bad", [0, -1, 2.0, "2", True, None])
@pytest.mark.parametrize("name", ["group_size", "neighbor_window"])
def test_settings_out_of_range_are_refused_by_name(bad, name):
    with pytest.raises(ValueError, match=name):
        SelfExtend(**{"group_size": 2, "neighbor_window": 8, name: bad})


def test_a_neighbor_window_as_large_as_the_pretraining_window_is_refused():
    with pytest.raises(ValueError, match="smaller than the pretraining window"):
        SelfExtend(2, 16).extended_window(16)


def test_a_key_after_its_query_is_refused():
    with pytest.raises(ValueError, match="query 3 and key 4"):
        SelfExtend(2, 16).relative_position(3, 4)


def test_settings_are_frozen_and_compare_by_value():
    settings = SelfExtend(8, 1024)
    assert settings == SelfExtend(8, 1024)
    with pytest.raises(AttributeError):
        settings.group_size = 4  # type: ignore[misc]  # frozen: that is tested
