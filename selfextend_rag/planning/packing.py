"""The fewest prompts that each hold whole documents: bin packing.

Up to `EXACT_UP_TO` documents the number is exact, by dynamic programming over all subsets. Beyond
that it is found by best-fit decreasing and by filling groups one at a time as far as sums allow,
whichever needs fewer; with it comes a lower bound (Martello and Toth's L2), which mostly says that
the number is exact too.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from selfextend_rag.planning.plan import ContextPlan

EXACT_UP_TO = 12
"""Documents up to which all ways of grouping are weighed."""

_WORTH_FILLING = 4 * 10**6  # documents times tokens of a group: what takes a few milliseconds


@dataclass(frozen=True, slots=True)
class Packing:
    """Documents in as few prompts as were found.

    Args:
        groups: indexes of the documents of each prompt, both in the order they were given in.
        lower_bound: fewer prompts than this are impossible.
        plans: how each prompt is read, where that was asked for.
    """

    groups: tuple[tuple[int, ...], ...]
    lower_bound: int
    plans: tuple[ContextPlan, ...] = ()

    @property
    def optimal(self) -> bool:
        """Return whether fewer prompts are known to be impossible."""
        return len(self.groups) == self.lower_bound


def pack(sizes: Sequence[int], capacity: int) -> Packing:
    """Return groups whose sizes add up to at most ``capacity``, as few as can be found.

    Args:
        sizes: of the documents, none above ``capacity``.
        capacity: of each group.

    Raises:
        ValueError: a size is negative or above ``capacity``.
    """
    bad = next((size for size in sizes if not 0 <= size <= capacity), None)
    if bad is not None:
        raise ValueError(f"sizes must be from 0 to the capacity of {capacity}, got {bad}")
    bound = lower_bound(sizes, capacity)
    groups = _best_fit(sizes, capacity)
    if len(groups) > bound and len(sizes) <= EXACT_UP_TO:
        groups = _exact(sizes, capacity)
        bound = len(groups)
    elif len(groups) > bound and len(sizes) * capacity <= _WORTH_FILLING:
        groups = min(groups, _filled(sizes, capacity), key=len)
    ordered = sorted(tuple(sorted(group)) for group in groups)
    return Packing(tuple(ordered), bound)


def lower_bound(sizes: Sequence[int], capacity: int) -> int:
    """Return a number of groups that no grouping is below (L2 of Martello and Toth).

    For a threshold k, documents above ``capacity - k`` share a group with none that is at least k,
    and those above half the capacity do not share with each other; what is left of the latter's
    groups holds part of the documents between k and half.
    """
    if not sizes:
        return 0
    ordered = sorted(sizes)
    sums = [0]
    for size in ordered:
        sums.append(sums[-1] + size)
    half = bisect_left(ordered, capacity // 2 + 1)
    best = max(1, -(-sums[-1] // capacity) if capacity else 1)
    for threshold in {0, *(size for size in ordered[:half])}:
        alone = bisect_left(ordered, capacity - threshold + 1)
        first = bisect_left(ordered, threshold)
        big = len(ordered) - half  # above half the capacity: one to a group
        left = (alone - half) * capacity - (sums[alone] - sums[half]) if alone > half else 0
        medium = sums[half] - sums[first] if half > first else 0
        over = max(0, medium - left)
        best = max(best, big + (-(-over // capacity) if capacity else 0))
    return best


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each document, largest first, where it leaves the least space."""
    groups: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # space left and group, in order
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        place = bisect_left(spaces, (sizes[index], -1))
        if place == len(spaces):
            groups.append([index])
            insort(spaces, (capacity - sizes[index], len(groups) - 1))
            continue
        left, group = spaces.pop(place)
        groups[group].append(index)
        insort(spaces, (left - sizes[index], group))
    return groups


def _exact(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the fewest groups: for each set of documents, the fewest and then the emptiest last.

    Which of two ways to the same set is better is settled by (groups, what the last one holds), so
    each set needs to be looked at once; 2 ** n sets, n steps each.
    """
    count = len(sizes)
    best = [(0, capacity)] * (1 << count)  # groups, and a full one, so that none is open
    last = [-1] * (1 << count)
    chosen = 0
    for chosen in range(1, 1 << count):
        found: tuple[int, int] | None = None
        for index in range(count):
            if not chosen >> index & 1:
                continue
            groups, held = best[chosen ^ 1 << index]
            grown = held + sizes[index]
            new = (groups, grown) if groups and grown <= capacity else (groups + 1, sizes[index])
            if found is None or new < found:
                found, last[chosen] = new, index
        assert found is not None
        best[chosen] = found
    result: dict[int, list[int]] = {}
    while chosen:  # all of them, to begin with: go back the way that each set was reached
        result.setdefault(best[chosen][0], []).append(last[chosen])
        chosen ^= 1 << last[chosen]
    return list(result.values())


def _filled(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill one group after another: the largest document left, and what fills the rest best.

    Which sums a set of documents can have is one integer, bit n for the sum n.
    """
    left = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    groups = []
    while left:
        free = capacity - sizes[left[0]]
        sums, mask = [1], (1 << (free + 1)) - 1
        for index in left[1:]:
            if sums[-1] >> free:  # it can be filled to the last token
                break
            sums.append((sums[-1] | sums[-1] << sizes[index]) & mask)
        rest = sums[-1].bit_length() - 1
        group = [left[0]]
        for place in range(len(sums) - 1, 0, -1):
            if not sums[place - 1] >> rest & 1:
                group.append(left[place])
                rest -= sizes[left[place]]
        groups.append(group)
        left = [index for index in left if index not in group]
    return groups
