"""What maps are made of: which pairs belong to a band, and the rotary positions of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

UNBOUNDED = 1 << 30
"""What `PositionMap.extended_window` returns where no length leads out of the window."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The rotary position of a token: ``(x % period + before) * times // over + after``.

    Args:
        times: factor; 0 for one position for all.
        over: divisor, rounded down.
        before: added first.
        after: added last.
        period: positions count from 0 again after so many; None for never.
        most: the largest position; None for no limit.
        real: divide without rounding.
    """

    times: int = 1
    over: int = 1
    before: int = 0
    after: int = 0
    period: int | None = None
    most: int | None = None
    real: bool = False

    def __call__(self, position: Any) -> Any:
        """Return the rotary position of an integer, or of a tensor of them.

        Of an integer, a real position is a fraction.
        """
        x = position if self.period is None else position % self.period
        x = (x + self.before) * self.times
        if not self.real:
            x = x // self.over
        else:
            x = Fraction(x, self.over) if isinstance(x, int) else x.double() / self.over
        x = x + self.after
        if self.most is None:
            return x
        return min(x, self.most) if isinstance(x, int | Fraction) else x.clamp(max=self.most)


SAME = Rule()


@dataclass(frozen=True, slots=True)
class MapBand:
    """The pairs with keys before a border, for some of the queries, and their rotary positions.

    A query at q sees keys k with ``k < (q - nearest + 1) // chunk * chunk`` by this band, unless a
    later band has them: with chunks of 1 those at least ``nearest`` tokens before it. The border
    never moves back as q grows.

    Args:
        nearest: the least distance, of chunks of 1.
        chunk: the border is at a multiple of it.
        query: the rotary position of a query.
        key: the rotary position of a key.
        every: only queries whose position leaves ``phase`` when divided by this.
        phase: see ``every``.
    """

    nearest: int = 0
    chunk: int = 1
    query: Rule = SAME
    key: Rule = SAME
    every: int = 1
    phase: int = 0

    def border(self, query: Any) -> Any:
        """Return the key at which a query's later keys no longer belong to this band."""
        return (query - self.nearest + 1) // self.chunk * self.chunk

    def covers(self, query: Any, key: Any) -> Any:
        """Return whether pairs with ``key <= query`` belong to this band or to a later one."""
        found = key < self.border(query)
        return found if self.every == 1 else found & (query % self.every == self.phase)

    def key_position(self, position: Any) -> Any:
        """Return the rotary position of a key."""
        return self.key(position)

    def query_position(self, position: Any) -> Any:
        """Return the rotary position of a query."""
        return self.query(position)


def check_positive(**settings: int) -> None:
    """Refuse settings that are no positive integers, by name."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_below(pretraining_window: int, **settings: int) -> None:
    """Refuse settings that are not smaller than the pretraining window, by name."""
    for name, value in settings.items():
        if value >= pretraining_window:
            limit = f"smaller than the pretraining window of {pretraining_window} tokens"
            raise ValueError(f"{name} must be {limit}, got {value}")
