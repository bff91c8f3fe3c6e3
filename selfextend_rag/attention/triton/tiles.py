"""Tile sizes of the kernels: which to take, which to try.

The first entry of a list is taken unless `choose` was given a better one (`benchmarks/gpu.py`
measures them all). Nothing is tuned behind a user's back: a first call would take a minute, and
inside a CUDA graph it could not be done.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch


@dataclass(frozen=True)
class PrefillTiles:
    """How the prefill kernel cuts its work; its edges are the border and the diagonal."""

    block_m: int  # queries of a program
    block_n: int  # keys at a time where there is no mask
    edge_n: int  # keys at a time at the edges, where two sets of scores are alive
    warps: int  # of 32 threads
    stages: int  # tiles of keys in flight where there is no mask
    edge_stages: int  # tiles of keys in flight at the edges
    descriptors: bool = False  # load by them (on sm_90 the copy engine) where alignment allows


@dataclass(frozen=True)
class DecodeTiles:
    """How the decode kernel cuts its work."""

    block_n: int  # keys at a time
    warps: int  # of 32 threads
    stages: int  # tiles of keys in flight
    programs: int  # to start for each multiprocessor; each takes a part of the keys


Tiles = PrefillTiles | DecodeTiles
Kind = Literal["prefill", "decode", "question"]
Key = tuple[Kind, tuple[int, int], int, int]
INTERPRETED = (0, 0)  # in place of a compute capability
_FEW_ROWS = 16  # the least that tensor cores multiply

_chosen: dict[Key, Tiles] = {}


def prefill_tiles(capability: tuple[int, int], dim: int, itemsize: int) -> PrefillTiles:
    """Return the tiles of a prefill; ``dim`` is the larger of the two padded head dimensions."""
    tiles = _taken(("prefill", capability, dim, itemsize))
    assert isinstance(tiles, PrefillTiles)
    return tiles


def decode_tiles(capability: tuple[int, int], dim: int, itemsize: int, rows: int) -> DecodeTiles:
    """Return the tiles of a decode step, or, with more than 16 rows, of a question."""
    tiles = _taken(("decode" if rows <= _FEW_ROWS else "question", capability, dim, itemsize))
    assert isinstance(tiles, DecodeTiles)
    return tiles


def paged_tiles(
    capability: tuple[int, int], dim: int, itemsize: int, few_rows: bool
) -> PrefillTiles:
    """Return the tiles of paged attention; with ``few_rows``, those of decode steps alone."""
    if capability == INTERPRETED:
        return _P(64, 64, 32, 4, 1, 1)
    if itemsize == 4:
        return _PAGED_FLOAT32[dim > 64]
    memory, wide = _shared_memory(capability), 64 if dim <= 64 else 128 if dim <= 128 else 256
    return (_PAGED_DECODE if few_rows else _PAGED)[memory][wide]


def _taken(key: Key) -> Tiles:
    return _chosen.get(key) or candidates(*key)[0]


def most_rows(dim: int, itemsize: int) -> int:
    """Return the rows of a decode program (queries times heads) that fit its registers."""
    return 64 if itemsize == 2 and dim <= 128 else 32


def choose(
    kind: Kind, tiles: Tiles | None, capability: tuple[int, int], dim: int, itemsize: int
) -> None:
    """Take these tiles from now on, at every length, for such heads on such devices.

    None goes back to the first of the list.
    """
    _chosen.pop((kind, capability, dim, itemsize), None)
    if tiles is not None:
        _chosen[kind, capability, dim, itemsize] = tiles


def candidates(
    kind: Kind, capability: tuple[int, int], dim: int, itemsize: int
) -> tuple[Tiles, ...]:
    """Return the tiles worth trying, the one to take first."""
    if capability == INTERPRETED:
        return (_P(16, 32, 16, 4, 1, 1),) if kind == "prefill" else (_D(32, 4, 1, 4),)
    memory = _shared_memory(capability)
    if kind == "prefill":
        if itemsize == 4:  # float32 goes through the general cores, operands in registers
            return _FLOAT32[dim > 64]
        return (_SM89, _SM80, _SM90)[memory][64 if dim <= 64 else 128 if dim <= 128 else 256]
    if itemsize == 4:
        return _DECODE_FLOAT32[dim > 64] if kind == "decode" else _QUESTION_FLOAT32
    if dim > 128:
        return _DECODE_WIDE
    if kind == "question":  # so many queries, scores and sums spill the registers of 4 warps
        return _QUESTION
    return _DECODE if memory else _DECODE_SMALL


def _shared_memory(capability: tuple[int, int]) -> int:
    """2 for 227 KiB a multiprocessor (sm_90, sm_100), 1 for 163 (sm_80, sm_87), 0 for 99."""
    return 2 if capability[0] in (9, 10) else int(capability in ((8, 0), (8, 7)))


@cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a CUDA device, (0, 0) for the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETED


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a CUDA device has; 4 for the interpreter."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


# The first entries were compiled for sm_90, sm_80 and sm_89. They fit shared memory (227, 163 and
# 99 KiB); in 16 bits no decode step or question spills registers, and no loop of a prefill, for
# heads of up to 128. None has been timed.
_P, _D = PrefillTiles, DecodeTiles
_SM90 = {
    64: (
        _P(128, 128, 64, 8, 3, 2, True),
        _P(128, 128, 64, 8, 2, 2, True),
        _P(128, 64, 64, 8, 3, 2, True),
        _P(64, 64, 64, 4, 3, 2, True),
    ),
    128: (
        _P(128, 128, 64, 8, 2, 2, True),
        _P(128, 64, 64, 8, 3, 2, True),
        _P(128, 128, 64, 8, 2, 2, False),
        _P(128, 128, 32, 8, 2, 2, True),
        _P(128, 128, 64, 8, 2, 1, True),
        _P(64, 64, 32, 4, 2, 2, True),  # two programs fit a multiprocessor, and alternate
        _P(64, 128, 64, 4, 1, 1, True),  # likewise
    ),
    256: (_P(128, 64, 32, 8, 2, 1, True), _P(64, 64, 32, 4, 2, 1, True)),
}
_SM80 = {
    64: (_P(128, 64, 32, 8, 3, 1), _P(128, 64, 32, 4, 3, 1), _P(64, 64, 32, 4, 3, 1)),
    128: (_P(128, 64, 32, 8, 2, 1), _P(128, 32, 32, 8, 3, 1), _P(64, 64, 32, 4, 2, 1)),
    256: (_P(64, 32, 32, 8, 2, 1), _P(32, 32, 32, 4, 2, 1)),
}
_SM89 = {
    64: (_P(128, 64, 32, 8, 2, 1), _P(64, 64, 32, 4, 3, 1)),
    128: (_P(128, 32, 32, 8, 2, 1), _P(128, 64, 32, 8, 2, 1), _P(64, 64, 32, 4, 2, 1)),
    256: (_P(64, 32, 16, 8, 2, 1), _P(32, 32, 16, 4, 1, 1)),
}
_FLOAT32 = ((_P(32, 32, 16, 4, 1, 1),), (_P(32, 16, 16, 8, 1, 1),))
_DECODE = (_D(64, 4, 3, 2), _D(64, 4, 2, 2), _D(32, 4, 3, 2), _D(128, 8, 2, 1), _D(64, 4, 3, 4))
_DECODE_SMALL = (_D(64, 4, 2, 2), _D(32, 4, 3, 2), _D(32, 4, 2, 4))
_DECODE_WIDE = (_D(32, 8, 2, 1), _D(16, 8, 2, 1), _D(32, 4, 2, 2), _D(16, 4, 3, 2))
_QUESTION = (_D(32, 8, 3, 1), _D(32, 8, 2, 1), _D(64, 8, 2, 1))
_DECODE_FLOAT32 = ((_D(32, 4, 2, 2),), (_D(16, 4, 2, 2),))
_QUESTION_FLOAT32 = (_D(16, 8, 1, 1),)

# Of paged attention, compiled likewise; batches of heads of 256 spill in their loops.
# The edges rotate keys in registers.
_PAGED = (
    {64: _P(128, 64, 32, 8, 2, 1), 128: _P(128, 32, 32, 8, 2, 1), 256: _P(32, 32, 16, 4, 2, 1)},
    {64: _P(128, 64, 32, 8, 3, 1), 128: _P(128, 64, 32, 8, 2, 1), 256: _P(32, 32, 16, 4, 2, 1)},
    {64: _P(128, 128, 64, 8, 3, 1), 128: _P(128, 64, 32, 8, 3, 1), 256: _P(64, 64, 32, 8, 2, 1)},
)
_PAGED_DECODE = (
    {64: _P(16, 64, 32, 4, 3, 2), 128: _P(16, 64, 32, 4, 2, 2), 256: _P(16, 32, 16, 4, 2, 1)},
    {64: _P(16, 64, 32, 4, 4, 2), 128: _P(16, 64, 32, 4, 3, 2), 256: _P(16, 32, 32, 4, 3, 2)},
    {64: _P(16, 64, 32, 4, 4, 2), 128: _P(16, 64, 32, 4, 4, 2), 256: _P(16, 32, 32, 4, 4, 2)},
)
_PAGED_FLOAT32 = (_P(32, 32, 16, 4, 1, 1), _P(32, 16, 16, 8, 1, 1))
