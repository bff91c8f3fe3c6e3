"""Maps whose settings do not depend on the length: ReRoPE, leaky ReRoPE, STRING, dual chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfextend_rag.maps.bands import UNBOUNDED, MapBand, Rule, check_below, check_positive
from selfextend_rag.positions import AnyBand, PositionMap


@dataclass(frozen=True, slots=True)
class ReRoPE(PositionMap):
    """All that is not near is at one distance, W; Jianlin Su, 2023 (kexue.fm/archives/9708).

    Args:
        window: W, distances below it are exact.
        log_scaled: P, to multiply a query at position q by ``max(1, ln(q + 1) / ln P)``, as the
            author's code does; by default queries stay as they are.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "rerope"

    window: int
    log_scaled: int | None = None

    def __post_init__(self) -> None:
        check_positive(window=self.window)
        if self.log_scaled is not None and self.log_scaled < 2:
            raise ValueError(f"log_scaled must be a window of at least 2, got {self.log_scaled}")

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return the two bands."""
        constant = Rule(times=0)
        far = MapBand(nearest=self.window, query=Rule(times=0, after=self.window), key=constant)
        return MapBand(), far

    def extended_window(self, pretraining_window: int) -> int:
        """Return `UNBOUNDED`: no position is above W, which must be below P."""
        check_below(pretraining_window, window=self.window)
        return UNBOUNDED


@dataclass(frozen=True, slots=True)
class LeakyReRoPE(PositionMap):
    """What is not near is c times as dense, at real positions (kexue.fm/archives/9708).

    Args:
        window: W, distances below it are exact.
        scale: c, how many far tokens share a position.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "leaky_rerope"

    window: int
    scale: int

    def __post_init__(self) -> None:
        check_positive(window=self.window, scale=self.scale)

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return the two bands."""
        before = self.window * (self.scale - 1)
        query, key = (Rule(over=self.scale, before=x, real=True) for x in (before, 0))
        return MapBand(), MapBand(nearest=self.window, query=query, key=key)

    def relative_position(self, query: int, key: int) -> float:
        """Return the relative position, the nearest float to the exact one."""
        return float(PositionMap.relative_position(self, query, key))

    def extended_window(self, pretraining_window: int) -> int:
        """Return the last N with ``W + (N - 1 - W) / c < P``."""
        check_below(pretraining_window, window=self.window)
        return self.scale * (pretraining_window - self.window) + self.window


@dataclass(frozen=True, slots=True)
class String(PositionMap):
    """STRING: far positions are shifted back into the well-trained ones (arXiv 2410.18745).

    Made for sequences inside the window, whose farthest positions hardly came up in training. The
    authors' code sees distance S in both bands; here it belongs to the farther one.

    Args:
        shift: S, distances below it are exact.
        local: W, the position at distance S.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "string"

    shift: int
    local: int

    def __post_init__(self) -> None:
        check_positive(shift=self.shift, local=self.local)
        if self.local > self.shift:
            raise ValueError(f"local must be at most the shift of {self.shift}, got {self.local}")

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return the two bands."""
        query = Rule(after=self.local - self.shift)
        return MapBand(), MapBand(nearest=self.shift, query=query)

    def extended_window(self, pretraining_window: int) -> int:
        """Return ``P + S - W``: positions are shifted, not squeezed."""
        if self.shift > pretraining_window:
            limit = f"at most the pretraining window of {pretraining_window} tokens"
            raise ValueError(f"shift must be {limit}, got {self.shift}")
        return pretraining_window + self.shift - self.local


@dataclass(frozen=True, slots=True)
class DualChunk(PositionMap):
    """Dual chunk attention: chunks of c = s - w tokens; keys keep their place (arXiv 2402.17463).

    Keys of a query's own chunk are at their distance; those of the chunk before it too, but none
    beyond s; all older ones are as from a query at s.

    Args:
        chunk_size: s, the largest position of a query.
        local_window: w, the latest tokens that keep their distance across the border of a chunk.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    name: ClassVar[str] = "dual_chunk"

    chunk_size: int
    local_window: int

    def __post_init__(self) -> None:
        check_positive(chunk_size=self.chunk_size, local_window=self.local_window)
        if self.local_window >= self.chunk_size:
            limit = f"below the chunk_size of {self.chunk_size}"
            raise ValueError(f"local_window must be {limit}, got {self.local_window}")

    @property
    def bands(self) -> tuple[AnyBand, ...]:
        """Return same, previous and older chunks."""
        size, chunk = self.chunk_size, self.chunk_size - self.local_window
        key = Rule(period=chunk)
        previous, older = Rule(period=chunk, after=chunk, most=size), Rule(times=0, after=size)
        return (
            MapBand(query=key, key=key),
            MapBand(nearest=1, chunk=chunk, query=previous, key=key),
            MapBand(nearest=chunk + 1, chunk=chunk, query=older, key=key),
        )

    def extended_window(self, pretraining_window: int) -> int:
        """Return `UNBOUNDED`: no position is above s, which must be below P."""
        check_below(pretraining_window, chunk_size=self.chunk_size)
        return UNBOUNDED
