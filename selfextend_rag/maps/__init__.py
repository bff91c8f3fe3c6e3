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
from dataclasses import asdict, is_dataclass
from typing import Any

from selfextend_rag.maps.bands import UNBOUNDED, MapBand, Rule
from selfextend_rag.maps.fitted import AdaGroPE, LaMPE
from selfextend_rag.maps.fixed import DualChunk, LeakyReRoPE, ReRoPE, String
from selfextend_rag.positions import PositionMap, SelfExtend

__all__ = [
    "MAPS",
    "UNBOUNDED",
    "AdaGroPE",
    "DualChunk",
    "LaMPE",
    "LeakyReRoPE",
    "MapBand",
    "ReRoPE",
    "Rule",
    "String",
    "map_from_dict",
    "map_to_dict",
]

MAPS: dict[str, type[PositionMap]] = {
    kind.name: kind for kind in (ReRoPE, LeakyReRoPE, String, DualChunk, LaMPE, AdaGroPE)
}
"""The maps of this package by name; `SelfExtend` is that of `positions`."""


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
    method = given.pop("method", SelfExtend.name)
    if method == SelfExtend.name:
        return SelfExtend(**given)
    if method not in MAPS:
        raise ValueError(f"there is no map {method!r}; there are {', '.join(MAPS)}, selfextend")
    return MAPS[method](**given)
