"""Other maps than SelfExtend's: at which relative position a query sees a key, as data.

Each map is a tuple of bands: which pairs, and at which rotary positions their queries and keys are
rotated. With a query at q, a key at k <= q and their distance d = q - k:

=============  ==============================================================  ================
map            bands                                                           source
=============  ==============================================================  ================
`ReRoPE`       d < W: exact; else W                                            kexue.fm/9708
`LeakyReRoPE`  d < W: exact; else W + (d - W) / c, a real number               kexue.fm/9708
`String`       d < S: exact; else d - S + W                                    arXiv 2410.18745
`DualChunk`    same chunk: exact; one before: at most s; older: s - k % c      arXiv 2402.17463
`LaMPE`        d < H: exact; then squeezed to U positions; farthest: d - x     arXiv 2508.02308
`AdaGroPE`     positions reused 1, 2, 4, ... times, more and more with d       its docstring
=============  ==============================================================  ================

All are checked against these definitions pair by pair, and none has a code path of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from fractions import Fraction
from typing import Any, ClassVar

from selfextend_rag.positions import AnyBand, PositionMap, SelfExtend

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
        _positive(window=self.window)
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
        _below(pretraining_window, window=self.window)
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
        _positive(window=self.window, scale=self.scale)

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
        _below(pretraining_window, window=self.window)
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
        _positive(shift=self.shift, local=self.local)
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
        _positive(chunk_size=self.chunk_size, local_window=self.local_window)
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
        _below(pretraining_window, chunk_size=self.chunk_size)
        return UNBOUNDED


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
        _positive(head=self.head, mapped=self.mapped, tokens=self.tokens)
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
        _positive(positions=self.positions, target=self.target)
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


def _positive(**settings: int) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _below(pretraining_window: int, **settings: int) -> None:
    for name, value in settings.items():
        if value >= pretraining_window:
            limit = f"smaller than the pretraining window of {pretraining_window} tokens"
            raise ValueError(f"{name} must be {limit}, got {value}")


MAPS: dict[str, type[PositionMap]] = {
    kind.name: kind for kind in (ReRoPE, LeakyReRoPE, String, DualChunk, LaMPE, AdaGroPE)
}
"""The maps of this module by name; `SelfExtend` is that of `positions`."""


def map_to_dict(settings: PositionMap) -> dict[str, Any]:
    """Return settings as JSON values: their figures, and the method where it is not SelfExtend."""
    assert is_dataclass(settings)
    values = asdict(settings)
    return values if isinstance(settings, SelfExtend) else {"method": settings.name, **values}


def map_from_dict(values: Mapping[str, Any]) -> PositionMap:
    """Return the settings that `map_to_dict` gave.

    Raises:
        ValueError: they are of no method that there is, or a figure is out of range.
        TypeError: a figure is missing, or is none of the method's.
    """
    given = dict(values)
    return from_case(given.pop("method", SelfExtend.name), given)


def from_case(method: str, settings: Mapping[str, Any], tokens: int = 0) -> PositionMap:
    """Return the map of a record of positions: a method, its settings, and the tokens in all.

    Raises:
        ValueError: there is no such method, or a setting is out of range.
        TypeError: a setting is missing, or the method has none of that name.
    """
    given = dict(settings)
    if method == String.name:
        given.pop("window", None)  # P, which changes no position
    if method == LaMPE.name and tokens:
        given.setdefault("tokens", tokens)
    if method in ("self_extend", SelfExtend.name):
        return SelfExtend(**given)
    if method not in MAPS:
        raise ValueError(f"there is no map {method!r}; there are {', '.join(MAPS)}, selfextend")
    return MAPS[method](**given)
