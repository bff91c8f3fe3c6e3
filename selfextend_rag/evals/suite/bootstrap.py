"""Bootstrap intervals: whole items are drawn, since questions on one document are not independent.

The same scores give the same figures on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from selfextend_rag.evals.benchmarks.items import Scores, mean_score

RESAMPLES = 1000
LEVEL = 0.95
LEAST = 5  # items: two that agree would give an interval of no width, which looks certain
_SEED = 20240101

Statistic = Callable[[Sequence[Scores]], float]
Items = Mapping[str, Sequence[Scores]]
"""The scores of each item's rows, by its id."""


def interval(items: Items, statistic: Statistic) -> tuple[float, float] | None:
    """Return the bootstrap interval of a statistic, items drawn with replacement.

    None for fewer than `LEAST` items.
    """
    return bounds_of(bootstrap(items, statistic))


def bootstrap(items: Items, statistic: Statistic, *, stream: int = 0) -> list[float]:
    """Return a statistic of `RESAMPLES` samples of items, drawn with replacement.

    Args:
        items: the scores of each; of fewer than `LEAST` the result is empty.
        statistic: of the scores of a sample.
        stream: which draws; those of one number and as many items are the same each time.
    """
    if len(items) < LEAST:
        return []
    return _resampled(list(items.values()), statistic, _draws(len(items), stream))


def paired(first: Items, second: Items, statistic: Statistic, *, stream: int = 0) -> list[float]:
    """Return bootstrap differences of a statistic over the same items of two columns."""
    one = bootstrap(first, statistic, stream=stream)
    two = bootstrap({key: second[key] for key in first}, statistic, stream=stream)
    return [a - b for a, b in zip(one, two, strict=True)]


def means_of(values: Sequence[Sequence[float]]) -> list[float]:
    """Return the means over tasks, sample by sample; none where a task has no samples."""
    return [math.fsum(x) / len(x) for x in zip(*values, strict=True)] if all(values) else []


def _draws(items: int, stream: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return which items are drawn, ``[RESAMPLES, items]``, the same each time."""
    return np.random.default_rng([_SEED, stream, items]).integers(0, items, (RESAMPLES, items))


def _resampled(
    items: Sequence[Sequence[Scores]],
    statistic: Statistic,
    draws: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> list[float]:
    if statistic is mean_score:  # of sums, which is much faster than of rows
        sums = np.array([math.fsum(row["score"] for row in rows) for rows in items])
        counts = np.array([len(rows) for rows in items])
        means: list[float] = (sums[draws].sum(1) / counts[draws].sum(1)).tolist()
        return means
    return [statistic(flat(items[place] for place in drawn)) for drawn in draws.tolist()]


def flat(items: Iterable[Sequence[Scores]]) -> list[Scores]:
    """Return the scores of all items' rows."""
    return [row for rows in items for row in rows]


def bounds_of(values: Sequence[float]) -> tuple[float, float] | None:
    """Return what holds `LEVEL` of the values; None without any."""
    if not values:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return float(low), float(high)
