"""Shares of the attention along each document, against sums over single characters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfextend_rag.documents import Document
from selfextend_rag.evidence import TokenRanges, attention_profile

TEXTS = ("A fox ran.", "Ten 東京 towers, twelve lamps and a bell.")


def documents():
    return [Document.from_text(text) for text in TEXTS]


def ranges(cuts, *, splits=()):
    """Tokens that end at some characters of each text; those in splits are followed by an empty
    range. A token of a heading is before each document."""
    rows = []
    for number, (text, ends) in enumerate(zip(TEXTS, cuts, strict=True)):
        rows.append((-1, 0, 0))
        start = 0
        for end in [*sorted(ends - {0, len(text)}), len(text)]:
            rows.append((number, start, end))
            rows += [(number, end, end)] * (end in splits)
            start = end
    return TokenRanges(*(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)))


def by_characters(mass, given):
    """The weight of each character of each document, token by token."""
    weights = [np.zeros(len(text)) for text in TEXTS]
    for i, (number, start, end) in enumerate(
        zip(given.document, given.start, given.end, strict=True)
    ):
        if number >= 0 and i >= 2:  # the first two tokens of a prompt do not count
            start = start if start < end else start - 1
            weights[number][start:end] += mass[i] / (end - start)
    return weights


@given(
    st.lists(st.sets(st.integers(1, 9)), min_size=2, max_size=2),
    st.sets(st.integers(1, 9)),
    st.randoms(use_true_random=False),
)
def test_slices_of_one_character_have_the_weight_of_the_character(cuts, splits, random):
    given = ranges(cuts, splits=splits)
    mass = np.array([0.01 + random.random() for _ in range(len(given) + 3)])
    expected = by_characters(mass, given)
    total = sum(float(weights.sum()) for weights in expected)
    for number, text in enumerate(TEXTS):
        found = attention_profile(mass, given, documents(), slices=len(text))[number]
        assert found == pytest.approx(expected[number] / total, abs=1e-12)


@pytest.mark.parametrize("slices", [1, 3, 7, 200])
def test_all_shares_add_up_to_one_and_none_is_negative(slices):
    given = ranges([{3, 5}, {4, 6, 7, 20}], splits={6})
    mass = np.random.default_rng(0).random(len(given)) ** 8
    shares = attention_profile(mass, given, documents(), slices=slices)
    assert [len(each) for each in shares] == [slices] * 2
    assert min(map(min, shares)) >= 0.0
    assert sum(map(sum, shares)) == pytest.approx(1.0)


def test_what_is_looked_at_is_where_it_is():
    given = ranges([set(), {18, 24}])
    mass = np.where((given.document == 1) & (given.start == 18), 5.0, 0.0)
    first, second = attention_profile(mass, given, documents(), slices=len(TEXTS[1]))
    assert sum(first) == 0.0
    assert np.flatnonzero(second).tolist() == list(range(18, 24))


def test_where_no_document_is_looked_at_there_is_none():
    given = ranges([set(), set()])
    assert attention_profile(np.zeros(len(given)), given, documents()) == ()
    heading = np.where(given.document < 0, 1.0, 0.0)
    assert attention_profile(heading, given, documents()) == ()
