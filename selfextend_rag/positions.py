"""The arithmetic of SelfExtend (arXiv 2401.01325), once.

A query at position ``q`` sees a key at position ``k <= q`` at relative position

* ``q - k`` when ``q - k < W`` (neighbor attention),
* ``(q // G + W - W // G) - k // G`` otherwise (grouped attention),

with neighbor window ``W`` and group size ``G``, all in integers. Everything else in this package
applies these few lines or inverts them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar


class _Integer(Protocol):
    def __floordiv__(self: Position, other: int, /) -> Position: ...
    def __add__(self: Position, other: int, /) -> Position: ...


Position = TypeVar("Position", bound=_Integer)  # an integer, or a tensor of them


class AnyBand(Protocol):
    """Some of the pairs, and the rotary positions of their queries and keys; see `Band`.

    Positions come as integers, or as tensors of them that are broadcast.
    """

    def covers(self, query: Any, key: Any) -> Any:
        """Return whether pairs with ``key <= query`` belong to this band or to a later one."""

    def key_position(self, position: Any) -> Any:
        """Return the rotary position of a key."""

    def query_position(self, position: Any) -> Any:
        """Return the rotary position of a query."""


class PositionMap(ABC):
    """At which relative position a query sees a key, as bands: `SelfExtend`, or a map of `maps`.

    Settings are frozen and compare by value: keys that were cached under some belong to those.

    Attributes:
        name: what the method is called.
        rotary_scale: factor on rotated queries and on rotated keys.
        log_scaled: P where a query at position q is multiplied by ``max(1, ln(q + 1) / ln P)``;
            None where queries stay as they are.
    """

    name: ClassVar[str]
    rotary_scale: ClassVar[float] = 1.0
    log_scaled: int | None = None

    @property
    @abstractmethod
    def bands(self) -> Sequence[AnyBand]:
        """Return the bands, nearest first. A pair belongs to the last one that covers it."""

    @abstractmethod
    def extended_window(self, pretraining_window: int) -> int:
        """Return the longest sequence, in tokens, whose relative positions stay below P."""

    def relative_position(self, query: int, key: int) -> float:
        """Return the relative position at which ``query`` sees ``key``; ``0 <= key <= query``."""
        if not 0 <= key <= query:
            raise ValueError(f"need 0 <= key <= query, got query {query} and key {key}")
        band = [band for band in self.bands if band.covers(query, key)][-1]
        position: float = band.query_position(query) - band.key_position(key)
        return position


@dataclass(frozen=True, slots=True)
class Band:
    """The pairs from one distance on, and the rotary positions of their queries and keys.

    Args:
        nearest: the least distance of these pairs; they end where the next band begins.
        group_size: how many consecutive positions share one.
        shift: what the position of a query gets on top.
    """

    nearest: int = 0
    group_size: int = 1
    shift: int = 0

    def covers(self, query: Any, key: Any) -> Any:
        """Return whether pairs are as far apart as those of this band, or farther."""
        return query - key >= self.nearest

    def key_position(self, position: Position) -> Position:
        """Return the rotary position of a key."""
        return position // self.group_size

    def query_position(self, position: Position) -> Position:
        """Return the rotary position of a query."""
        return position // self.group_size + self.shift


@dataclass(frozen=True, slots=True)
class SelfExtend(PositionMap):
    """The two settings of SelfExtend.

    Args:
        group_size: G, how many consecutive far positions share one grouped position; 1 is
            ordinary attention.
        neighbor_window: W, the latest tokens, the query included, that keep their exact distance.

    Raises:
        ValueError: a setting is not a positive integer; the message names it.
    """

    name: ClassVar[str] = "selfextend"

    group_size: int
    neighbor_window: int

    def __post_init__(self) -> None:
        _check("group_size", self.group_size)
        _check("neighbor_window", self.neighbor_window)

    @property
    def bands(self) -> tuple[Band, ...]:
        """Neighbor and grouped attention, nearest first; neighbors alone with a group size of 1.

        The shift lets the grouped positions continue where the neighbor window ends.
        """
        group, window = self.group_size, self.neighbor_window
        if group == 1:
            return (Band(),)
        return Band(), Band(nearest=window, group_size=group, shift=window - window // group)

    def extended_window(self, pretraining_window: int) -> int:
        """Return the longest sequence, prompt and answer together, in tokens, that stays in range.

        The farthest pair is (length - 1, 0), at relative position
        ``(length - 1) // G + W - W // G``; this is the last length that keeps it below P, the
        ``pretraining_window`` of tokens that the model was trained to see, which must be above W.
        Equal to the paper's ``(P - W) * G + W`` when G divides W, and shorter otherwise.
        """
        _check("pretraining_window", pretraining_window)
        group, window = self.group_size, self.neighbor_window
        if window >= pretraining_window:
            largest = f"the pretraining window of {pretraining_window} tokens"
            raise ValueError(f"neighbor_window must be smaller than {largest}, got {window}")
        return group * (pretraining_window - window + window // group)


def _check(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
