"""The time that is left of a reading, against readings whose time is known."""

from __future__ import annotations

import pytest

from selfextend_rag.serve.web.pace import Pace

TOTAL, CHUNK = 10_000, 500


def seconds_left(duration, wait=3.0):
    """What is said after each chunk of a reading, and what was right.

    Args:
        duration: the seconds that so many tokens take.
        wait: seconds before the first chunk, which other requests took.
    """
    now = 0.0
    pace = Pace(lambda: now)
    for done in range(CHUNK, TOTAL + 1, CHUNK):
        now = wait + duration(done)
        yield pace.seconds_left(done, TOTAL), duration(TOTAL) - duration(done)


@pytest.mark.parametrize(
    "duration",
    [
        lambda n: 0.002 * n,
        lambda n: 1e-7 * n * n,
        lambda n: 0.001 * n + 3e-8 * n * n,
    ],
    ids=["tokens alone", "pairs alone", "both"],
)
def test_what_grows_as_attention_does_is_foreseen_from_the_third_chunk_on(duration):
    said = list(seconds_left(duration))
    assert said[0][0] is None
    for left, right in said[2:]:
        assert left == pytest.approx(right, rel=1e-3, abs=1e-6)
    assert said[-1][0] == 0.0


def test_chunks_that_vary_give_no_negative_time_and_about_the_right_one():
    noise = [1.0, 1.6, 0.5, 1.3, 0.6]  # one after another, so that their mean is 1
    took = [noise[i % 5] for i in range(TOTAL // CHUNK)]
    said = list(seconds_left(lambda n: sum(took[: n // CHUNK])))
    assert all(left is None or left >= 0.0 for left, _ in said)
    for left, right in said[len(said) // 2 : -1]:
        assert left == pytest.approx(right, abs=1.0)  # about the time of a chunk


def test_a_document_of_one_chunk_is_at_its_end():
    assert Pace().seconds_left(100, 100) == 0.0
