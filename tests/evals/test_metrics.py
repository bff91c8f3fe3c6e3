"""Exact match, likelihood by position, perplexity."""

import math

import pytest

from selfextend_rag.evals import is_exact_match, nll_by_position, perplexity


@pytest.mark.parametrize("generated", ["12345", " 12345", " 12345\n\nQuestion: again", "\n12345 "])
def test_the_answer_on_the_first_line_matches(generated):
    assert is_exact_match(generated, "12345")


@pytest.mark.parametrize("generated", ["", "\n", "1234", "123456", "12345.", "x 12345", "0\n12345"])
def test_anything_else_does_not_match(generated):
    assert not is_exact_match(generated, "12345")


def test_means_are_taken_over_sequences_and_positions_of_a_bin():
    result = nll_by_position([[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]], bin_size=2)
    assert result.bin_starts == (1, 3)
    assert result.means == (2.5, 5.0)


def test_sequences_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        nll_by_position([[1.0], [1.0, 2.0]], bin_size=1)


def test_guessing_among_n_tokens_has_perplexity_n():
    assert perplexity([math.log(7)] * 5) == pytest.approx(7)


def test_perplexity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        perplexity([])
