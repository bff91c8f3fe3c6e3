"""Maps that are made for one length, which is fixed for a reading: LaMPE and AdaGroPE."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from selfextend_rag.maps.bands import MapBand, Rule, check_positive
from selfextend_rag.positions import AnyBand, PositionMap


@dataclass(frozen=True, slots=True)
class LaMPE(PositionMap):
    """Near and farthest distances exact, all between squeezed to U positions (arXiv 2508.02308).

    With ``m(i) = U * i // (N - 1)``: d < H is exact, then ``m(q) + b - m(k)`` continues it, and
    from ``N - R`` on the distance counts on one by one, R the last token that shares a position
    with token T. As in the authors' code, a sequence of less than 2 H tokens runs plain, and
    rotated queries and keys are multiplied by 0.1 ln 2 + 1. Their code sees distances H and N - R
    in two bands each; here they belong to the farther one.

    Args:
        head: H.
        tail: T.
        mapped: U.
        tokens: N, prompt and answer together. It is fixed for a reading, since keys depend on it.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "lampe"
    rotary_scale: ClassVar[float] = 1.0693147180559945  # 0.1 ln 2 + 1

    head: int
    tail: int
    mapped: int
    tokens: int

    def __post_init__(self) -> None:
        check_positive(head=self.head, mapped=self.mapped, tokens=self.tokens)
        if not 0 <= self.tail <= self.head:
            raise ValueError(f"tail must be from 0 to the head of {self.head}, got {self.tail}")

    @property
    def _plain(self) -> bool:
        return self.tokens < 2 * self.head

    def _last_of_tail(self) -> int:
        """Return R: the last token at the mapped position of token T."""
        n, u = self.tokens - 1, self.mapped
        following = -(-(u * self.tail // n + 1) * n // u)  # the first token at the next position
        return min(n, following - 1)

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return near, squeezed and farthest pairs."""
        if self._plain:
            return (MapBand(),)
        n, last = self.tokens - 1, self._last_of_tail()
        squeezed = Rule(times=self.mapped, over=n)
        bias = self.head - 1 - squeezed(self.head)
        begin = n - last
        middle = MapBand(
            nearest=self.head, query=Rule(self.mapped, over=n, after=bias), key=squeezed
        )
        back = squeezed(begin) + bias - begin
        farthest = MapBand(nearest=max(self.head, begin + 1), query=Rule(after=back))
        return MapBand(), middle, farthest

    def extended_window(self, pretraining_window: int) -> int:
        """Return N: a longer sequence needs a map of its own.

        Raises:
            ValueError: N tokens have positions beyond the pretraining window.
        """
        n = self.tokens - 1
        farthest = n if self._plain else max(self.head, int(self.relative_position(n, 0)))
        if farthest >= pretraining_window:
            raise ValueError(
                f"mapped must be smaller than {self.mapped}: {self.tokens} tokens have positions "
                f"up to {farthest}, beyond the pretraining window of {pretraining_window}"
            )
        return self.tokens


@dataclass(frozen=True, slots=True)
class AdaGroPE(PositionMap):
    """Positions are reused more and more with the distance, until they reach N.

    The first ``r_1 = ratio * P'`` distances are exact; then ``r_g = r_1 / g`` positions are each
    used for g distances, g = 2, 4, 8, ... A reuse of m for all the rest reaches
    ``L_m = m * P' - sum of (m - g) * r_g`` over the g below m; the largest m that does not go
    beyond N is taken, and as many of the last positions are used m + 1 times as N needs. (The
    paper's equation 15 prints another sum, which contradicts its equations 10 and 13.)

    It is defined by distance alone, so keys are rotated once for each remainder of a query's
    position by the reuse: as many rotations as positions are shared, and as many pairs as ever.

    Source: aclanthology.org/2025.acl-long.28, which has no number at arXiv that we know of.

    Args:
        positions: P', how many positions there are.
        ratio: share of them that is exact.
        target: N, prompt and answer together. It is fixed for a reading, since keys depend on it.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "adagrope"

    positions: int
    ratio: float
    target: int

    def __post_init__(self) -> None:
        check_positive(positions=self.positions, target=self.target)
        if not 0 < self.ratio <= 0.5:
            raise ValueError(f"ratio must be in (0, 0.5], got {self.ratio!r}")
        if self._held(1) < 1:
            raise ValueError(f"ratio {self.ratio} of {self.positions} positions leaves none exact")

    def _held(self, reuse: int) -> int:
        """Return r_g: how many positions are used g times."""
        share = Fraction(str(self.ratio)) * self.positions
        return int(share / reuse)

    def _steps(self) -> list[tuple[int, int, int]]:
        """Return (first distance, first position, reuse) of each part, nearest first."""
        reuse, held = 1, {1: self._held(1)}

        def reach(most: int) -> int:
            rest = sum((most - g) * count for g, count in held.items() if g < most)
            return most * self.positions - rest

        while reach(reuse + 1) <= self.target:
            reuse += 1
            if reuse & (reuse - 1) == 0:
                held[reuse] = self._held(reuse)
        parts, distance, position = [], 0, 0
        for g in (g for g in held if g < reuse):
            parts.append((distance, position, g))
            distance, position = distance + g * held[g], position + held[g]
        longer = max(0, self.target - reach(reuse))  # positions that are used once more
        shorter = self.positions - position - longer
        if shorter > 0:
            parts.append((distance, position, reuse))
        parts.append((distance + shorter * reuse, position + shorter, reuse + 1))
        return parts

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return a band for each part and each remainder of a query's position by its reuse."""
        found: list[AnyBand] = []
        for distance, position, g in self._steps():
            query = Rule(over=g, before=-distance, after=position)
            found += [
                MapBand(distance, 1, query, Rule(over=g, before=g - 1 - late), g,
                        (late + distance) % g)
                for late in range(g)
            ]  # fmt: skip
        return tuple(found)

    def extended_window(self, pretraining_window: int) -> int:
        """Return N, or P' if that is more; P' must be at most P."""
        if self.positions > pretraining_window:
            limit = f"at most the pretraining window of {pretraining_window} tokens"
            raise ValueError(f"positions must be {limit}, got {self.positions}")
        return max(self.target, self.positions)
