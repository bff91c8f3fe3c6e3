"""The Triton kernel of paged attention against the dense reference in float64.

On the CPU it runs in Triton's interpreter; the same tests run compiled where there is a CUDA
device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.paged import Pages
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.attention.triton.paged import PagedBatch, paged_batch_attention, unsupported
from selfextend_rag.attention.triton.tiles import PrefillTiles
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

# masked scores of rows that hold anything are computed, and not taken
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

TILES = PrefillTiles(16, 32, 16, 4, 1, 1)
MIXED = ((1, 150), (37, 37), (1, 9), (21, 118), (5, 61), (1, 10), (12, 22))  # new tokens, of all


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    if request.param == "interpreter" and torch.cuda.is_available():
        pytest.skip("kernels are compiled where there is a GPU")
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def layout(dim: int, rotated: int = 0, **more) -> RotaryLayout:
    rotated = rotated or dim
    return RotaryLayout(tuple(1e4 ** (-2 * i / rotated) for i in range(rotated // 2)), **more)


@dataclass(frozen=True)
class Case:
    sequences: tuple[tuple[int, int], ...] = MIXED
    plain: tuple[int, ...] = ()  # which of them
    page: int = 16
    group: int = 3
    window: int = 10
    heads: int = 2
    kv_heads: int = 1
    dim: int = 16
    rotary: RotaryLayout | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    tiles: PrefillTiles = TILES
    splits: int | None = 1
    slots_first: bool = False  # whether a block has its slots before its heads

    @property
    def spec(self) -> AttentionSpec:
        sinks = torch.linspace(-1, 2, self.heads, dtype=torch.float64) if self.sinks else None
        return AttentionSpec.of(
            SelfExtend(self.group, self.window), rotary=self.rotary or layout(self.dim),
            scaling=self.dim**-0.5, softcap=self.softcap, sinks=sinks,
        )  # fmt: skip


def stored(case: Case, keys: list[torch.Tensor], values: list[torch.Tensor]):
    """Pages, and the blocks of each sequence, in no order; what belongs to none of them is NaN."""
    make = torch.Generator().manual_seed(5)
    counts = [-(-total // case.page) for _, total in case.sequences]
    order = torch.randperm(sum(counts) + 2, generator=make).int()
    shape = [len(order), case.kv_heads, case.page, 2 * case.dim]
    if case.slots_first:
        shape[1:3] = shape[2], shape[1]
    cache = torch.full(shape, torch.nan, dtype=case.dtype)
    cache = cache.transpose(1, 2) if case.slots_first else cache
    pages = Pages(*cache.split(case.dim, dim=-1))
    blocks = order[-1].repeat(len(counts), max(counts) + 1)
    for i, (k, v) in enumerate(zip(keys, values, strict=True)):
        mine = order[sum(counts[:i]) : sum(counts[: i + 1])]
        blocks[i, : counts[i]] = mine
        at = torch.arange(k.shape[2])
        band = case.spec.own_bands[-1]
        place = at if i in case.plain else band.key_position(at)
        slots = mine[at // case.page].long() * case.page + at % case.page
        rotated = case.spec.rotary.rotate(k, place)
        pages.store(rotated[0].transpose(0, 1), v[0].transpose(0, 1), slots)
    return pages, blocks


def largest_error(case: Case, device: torch.device) -> float:
    make = torch.Generator().manual_seed(len(case.sequences) + case.page)

    def random(heads: int, tokens: int) -> torch.Tensor:
        made = torch.randn(1, heads, tokens, case.dim, generator=make)
        return made.to(case.dtype).double()

    queries = [random(case.heads, length) for length, _ in case.sequences]
    keys, values = ([random(case.kv_heads, n) for _, n in case.sequences] for _ in range(2))
    pages, blocks = stored(case, keys, values)
    pages = Pages(pages.keys.to(device), pages.values.to(device))
    q = torch.cat([x[0].transpose(0, 1) for x in queries]).to(device, case.dtype)
    lengths, totals = (torch.tensor(x).int() for x in zip(*case.sequences, strict=True))
    starts = torch.cat([torch.zeros(1).int(), lengths.cumsum(0).int()])
    plain = torch.zeros(len(totals)).int()
    plain[list(case.plain)] = 1
    batch = PagedBatch(
        *(x.to(device) for x in (blocks, starts, totals)),
        plain.to(device) if case.plain else None, int(lengths.max()), int(totals.max()),
    )  # fmt: skip
    spec = case.spec
    given = spec if spec.sinks is None else replace(spec, sinks=spec.sinks.float().to(device))
    out = torch.full_like(q, torch.nan)
    paged_batch_attention(q, pages, batch, given, out, tiles=case.tiles, splits=case.splits)
    ordinary = replace(spec, bands=SelfExtend(1, 1).bands)
    expected = [
        reference_attention(q, k, v, ordinary if i in case.plain else spec)[0].transpose(0, 1)
        for i, (q, k, v) in enumerate(zip(queries, keys, values, strict=True))
    ]
    return float((out.cpu().double() - torch.cat(expected)).abs().max())


WIDE = PrefillTiles(32, 64, 16, 4, 1, 1)
CASES = {
    **{f"blocks of {n}": Case(page=n) for n in (16, 32, 48, 64, 128)},
    "a window that is a multiple of the group": Case(window=12),
    "a window of one": Case(window=1),
    "a window above all": Case(window=200),
    "a window above two tiles": Case(window=75, group=7),
    "a group above the window": Case(window=5, group=40),
    "plain sequences among others": Case(plain=(0, 1, 4)),
    "plain sequences alone": Case(plain=tuple(range(len(MIXED)))),
    "decode steps, split": Case(((1, 150), (1, 1), (1, 64), (1, 65), (1, 11)), splits=5),
    "decode steps, split, plain and sinks": Case(
        ((1, 150), (1, 3), (1, 33)), plain=(2,), splits=4, sinks=True
    ),
    "a mixture, split": Case(splits=3, plain=(3,)),
    "a question, split by the launcher": Case(((20, 290),), splits=None, heads=4, kv_heads=2),
    "sequences without new tokens": Case(((1, 40), (0, 30), (9, 50), (0, 0), (1, 20), (0, 0))),
    "three heads for each of two": Case(heads=6, kv_heads=2),
    "as many kv heads": Case(heads=2, kv_heads=2),
    "more heads than rows of a tile": Case(heads=24, kv_heads=1),
    "softcap and sinks": Case(softcap=5.0, sinks=True),
    "heads of 64": Case(dim=64, tiles=WIDE, window=33),
    "heads of 80": Case(((1, 100), (19, 70)), dim=80, heads=4, kv_heads=2),
    "heads of 96": Case(((1, 100), (19, 70)), dim=96, page=32),
    "heads of 128": Case(((1, 131), (40, 70)), dim=128, page=64, tiles=WIDE),
    "heads of 256": Case(((1, 60), (19, 50)), dim=256),
    "some dimensions are rotated": Case(rotary=layout(16, 8)),
    "the last ones are, in pairs of neighbors": Case(
        rotary=layout(16, 8, offset=8, pairing="interleaved", sign=-1)
    ),
    "rotated keys are scaled": Case(rotary=layout(16, scale=1.3)),
    "slots before heads": Case(page=32, slots_first=True, heads=4, kv_heads=2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_prefills_chunks_and_steps_is_the_reference(name, device):
    assert largest_error(CASES[name], device) < 2e-6


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_in_16_bits_it_errs_no_more_than_rounding(dtype, splits, device):
    """Keys are rounded when stored, neighbors once more when rotated, queries and weights once."""
    case = Case(dtype=dtype, splits=splits, heads=4, kv_heads=2, dim=32)
    assert largest_error(case, device) < 8 * torch.finfo(dtype).eps


def test_long_sequences_find_their_angles(device):
    """Positions beyond the fine part of the table, and more blocks than a tile has keys."""
    case = Case(((1, 3001), (5, 2999)), group=8, window=700, page=64, tiles=WIDE)
    assert largest_error(case, device) < 4e-6  # angles of thousands of radians, in float32


class _Unreadable(torch.Tensor):
    """Numbers of the device that the host may not look at, as while a CUDA graph is captured."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        if function in (
            torch.Tensor.item,
            torch.Tensor.tolist,
            torch.Tensor.__bool__,
            torch.Tensor.__int__,
            torch.Tensor.cpu,
            torch.Tensor.__index__,
        ):
            raise AssertionError(f"the launch reads numbers of the device ({function.__name__})")
        return super().__torch_function__(function, kinds, args, kwargs or {})


def test_the_launch_depends_on_shapes_and_numbers_of_the_host_alone(monkeypatch):
    """What a captured graph repeats: two batches of other lengths start the same kernels."""
    from selfextend_rag.attention.triton import decode_kernels, paged_kernels

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            def start(*args, **kwargs):
                kept = [a for a in args if not isinstance(a, torch.Tensor)]
                seen.append((self.name, grid, kept, kwargs))

            return start

    monkeypatch.setattr(paged_kernels, "paged", Recorder("paged"))
    monkeypatch.setattr(decode_kernels, "join", Recorder("join"))
    starts = []
    for totals in ([5, 900, 33], [1000, 0, 1]):
        seen = []
        numbers = [torch.tensor(x).int().as_subclass(_Unreadable)
                   for x in ([[1] * 70] * 3, [0, 1, 2, 3], totals, [0, 1, 0])]  # fmt: skip
        cache = torch.zeros(9, 1, 16, 32)
        batch = PagedBatch(*numbers, longest_query=1, longest=1000)
        q = torch.zeros(3, 2, 16)
        paged_batch_attention(
            q, Pages(cache[..., :16], cache[..., 16:]), batch, Case().spec, torch.empty_like(q)
        )
        starts.append(seen)
    assert [kernel for kernel, *_ in starts[0]] == ["paged", "join"]
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((288, torch.float16, (9, 0)), "heads of 288 dimensions"),
        ((64, torch.float64, (9, 0)), "keys are torch.float64"),
        ((64, torch.float16, (7, 5)), r"compute capability \(7, 5\), below \(8, 0\)"),
    ],
)
def test_what_the_kernel_can_not_have_is_said(arguments, reason):
    assert re.search(reason, unsupported(*arguments))
    assert not unsupported(256, torch.bfloat16, (8, 0))
