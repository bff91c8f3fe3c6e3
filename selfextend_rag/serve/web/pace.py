"""How much longer a reading takes, from how long it took so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Estimates the seconds that are left of a reading.

    A token takes some time by itself, and some for each token before it that it sees; both are
    fitted to what was measured, by least squares, and neither is negative.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None  # share that was done, and when
        self._sums = [0.0] * 5  # of n n, n m, m m, n t, m t; n tokens, m pairs of them, t seconds

    def seconds_left(self, done: int, total: int) -> float | None:
        """Return the seconds to come, when so many tokens of all are read.

        None for the first call of several: how long its tokens waited for the model is not known.
        A call with no more tokens than the first one is a first one, of a reading begun again.
        """
        share, now = done / total, self._clock()
        if done >= total:
            return 0.0
        if self._first is None or share <= self._first[0]:
            self._first, self._sums = (share, now), [0.0] * 5
            return None
        begun, started = self._first
        alone, seconds = share - begun, now - started
        pairs = share**2 - begun**2
        terms = (alone * alone, alone * pairs, pairs * pairs, alone * seconds, pairs * seconds)
        self._sums = [one + other for one, other in zip(self._sums, terms, strict=True)]
        token, pair = self._fitted()
        return token * (1.0 - share) + pair * (1.0 - share**2)

    def _fitted(self) -> tuple[float, float]:
        """Return the seconds of all tokens by themselves, and of all their pairs."""
        nn, nm, mm, nt, mt = self._sums
        determinant = nn * mm - nm * nm
        if determinant > 1e-9 * nn * mm:
            token, pair = (mm * nt - nm * mt) / determinant, (nn * mt - nm * nt) / determinant
            if token >= 0.0 and pair >= 0.0:
                return token, pair
            if token < 0.0:
                return 0.0, mt / mm
        return nt / nn, 0.0
