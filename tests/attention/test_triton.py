"""The Triton kernels against the dense reference in float64.

On the CPU they run in Triton's interpreter, on tiny shapes; the same tests run compiled where there
is a CUDA device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from selfextend_rag.attention import AttentionSpec, self_extend_attention
from selfextend_rag.attention.bounds import HOLES, bounds_of, mask_of, refuse_holes
from selfextend_rag.attention.triton import launch
from selfextend_rag.attention.triton.dispatch import (
    FINE,
    MAX_POSITIONS,
    angle_table,
    attention_with_lse,
    why_not,
)
from selfextend_rag.attention.triton.tiles import DecodeTiles, PrefillTiles, candidates
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

# the interpreter multiplies rows of scratch that hold anything, whose scores are then not taken
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

PREFILL = PrefillTiles(16, 32, 16, 4, 1, 1)
DESCRIPTORS = PrefillTiles(16, 32, 16, 4, 1, 1, descriptors=True)
DECODE = DecodeTiles(32, 4, 1, 4)


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    if request.param == "interpreter" and torch.cuda.is_available():
        pytest.skip("kernels are compiled where there is a GPU")
    return torch.device("cuda" if request.param == "cuda" else "cpu")


def layout(dim: int, **kwargs) -> RotaryLayout:
    return RotaryLayout(tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)), **kwargs)


def spec_of(rotary, settings, **options) -> AttentionSpec:
    return AttentionSpec(rotary=rotary, bands=settings.bands, **options)


@dataclass(frozen=True)
class Case:
    """One call; ``length`` None is a whole prefill."""

    total: int = 50
    length: int | None = None
    group: int = 3
    window: int = 10
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    dim: int = 16
    value_dim: int | None = None
    rotary: RotaryLayout | None = None
    mask: str = ""
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    tiles: PrefillTiles | DecodeTiles = field(default=PREFILL)


def tensors(case: Case, device: torch.device) -> list[torch.Tensor]:
    make = torch.Generator().manual_seed(case.total + 7 * case.window)
    shapes = (
        (case.batch, case.heads, case.length or case.total, case.dim),
        (case.batch, case.kv_heads, case.total, case.dim),
        (case.batch, case.kv_heads, case.total, case.value_dim or case.dim),
    )
    return [torch.randn(s, generator=make).to(device, case.dtype) for s in shapes]


def padding(case: Case, device: torch.device) -> torch.Tensor | None:
    """Rows without padding, with much, and without any token."""
    if not case.mask:
        return None
    pads = torch.tensor([0, case.total * 2 // 3, case.total])[: case.batch, None]
    slots = torch.arange(case.total)
    seen = slots >= pads if case.mask == "left" else slots < case.total - pads
    return seen.to(device)


def errors(case: Case, device: torch.device) -> tuple[float, float]:
    """Our largest error against float64, and what the same precision may err."""
    q, k, v = tensors(case, device)
    mask = padding(case, device)
    options = {
        "rotary": case.rotary or layout(case.dim),
        "settings": SelfExtend(case.group, case.window),
        "softcap": case.softcap,
        "sinks": torch.linspace(-1, 2, case.heads, device=device) if case.sinks else None,
    }
    wide = self_extend_attention(
        q.double(), k.double(), v.double(), impl="reference", key_mask=mask, **options
    )
    same = self_extend_attention(q, k, v, impl="reference", key_mask=mask, **options)
    out, _ = attention_with_lse(
        q, k, v, spec_of(scaling=case.dim**-0.5, **options), tiles=case.tiles,
        bounds=None if mask is None else bounds_of(mask, case.total)[0],
    )  # fmt: skip
    assert out.dtype == case.dtype
    own = (same.double() - wide).abs().max().item()
    unit = torch.finfo(case.dtype).eps * wide.abs().max().item()
    return (out.double() - wide).abs().max().item(), 1.5 * own + 3 * unit


def check(case: Case, device: torch.device) -> None:
    """The allowance is that of the blocked implementation, see test_blocked.py."""
    ours, allowed = errors(case, device)
    assert ours <= allowed, f"{ours:.2e} > {allowed:.2e} in {case}"


ROTARIES = [
    layout(16, pairing="interleaved"),
    layout(12, sign=-1),
    layout(4, offset=12, scale=1.3),
    layout(8, offset=2, pairing="interleaved", sign=-1),
]
CASES = {
    **{f"{n} tokens": Case(n, window=16, group=4) for n in (1, 15, 16, 17, 33, 63, 64, 65)},
    "window below a tile, no multiple of the group": Case(60, window=5, group=3),
    "window of one": Case(40, window=1, group=2),
    "window above two tiles": Case(100, window=70, group=9),
    "group above the window": Case(60, window=4, group=50),
    "no groups": Case(40, group=1),
    "inside the window": Case(40, window=40),
    "one token past the window": Case(41, window=40),
    "a chunk": Case(70, 21),
    "a question longer than the window": Case(90, 40, window=7),
    "grouped-query heads, left padding": Case(
        40, batch=3, heads=4, kv_heads=2, mask="left", sinks=True
    ),
    "right padding": Case(40, batch=3, heads=2, mask="right"),
    "a chunk of padded rows": Case(60, 20, batch=2, mask="left"),
    "softcap and sinks": Case(45, softcap=5.0, sinks=True, heads=2),
    "softcap and left padding": Case(40, softcap=2.0, batch=2, mask="left"),
    "softcap in float16": Case(45, softcap=50.0, dtype=torch.float16),
    "softcap that all scores reach, in float16": Case(45, softcap=0.1, dtype=torch.float16),
    "float16, staged": Case(50, dtype=torch.float16, heads=2),
    "float16, values too narrow to stage": Case(40, value_dim=8, dtype=torch.float16),
    "wider values": Case(40, value_dim=40),
    "narrower values": Case(40, value_dim=12),
    "as many keys at the edges": Case(60, tiles=PrefillTiles(16, 16, 16, 4, 1, 1)),
    "more keys than queries": Case(90, window=30, tiles=PrefillTiles(16, 64, 16, 4, 1, 1)),
    "more queries than keys": Case(90, window=30, tiles=PrefillTiles(64, 16, 16, 4, 1, 1)),
    "descriptors": Case(70, heads=2, tiles=DESCRIPTORS),
    "descriptors, padded rows": Case(50, batch=2, mask="right", tiles=DESCRIPTORS),
    "descriptors, values not aligned": Case(30, value_dim=3, tiles=DESCRIPTORS),
    **{f"rotary {i}": Case(40, rotary=r) for i, r in enumerate(ROTARIES)},
    **{f"head of {d}": Case(20, window=6, dim=d) for d in (64, 80, 96, 128, 256)},
}


@pytest.mark.parametrize("name", CASES)
def test_prefill_errs_no_more_than_its_precision_does(name, device):
    check(CASES[name], device)


STEP = Case(90, 1, window=20, heads=4, kv_heads=2, tiles=DECODE)
STEPS = {
    "one token": STEP,
    "first token": replace(STEP, total=1),
    **{f"{n} tokens": replace(STEP, total=n) for n in (20, 21, 63, 64, 65)},
    "groups that fill a tile": replace(STEP, group=32),
    "groups larger than a tile": replace(STEP, group=40, total=130),
    "no groups": replace(STEP, group=1),
    "inside the window": replace(STEP, window=90),
    "window of one": replace(STEP, window=1),
    "several queries": replace(STEP, length=7),
    "more queries than the window": replace(STEP, length=9, window=4),
    "left padding": replace(STEP, batch=3, mask="left", sinks=True),
    "right padding": replace(STEP, batch=2, mask="right", length=5),
    "softcap and sinks": replace(STEP, softcap=5.0, sinks=True),
    "float16": replace(STEP, dtype=torch.float16),
    "softcap in float16": replace(STEP, softcap=50.0, dtype=torch.float16),
    "other values": replace(STEP, value_dim=20),
    "many heads": replace(STEP, heads=12, kv_heads=1, length=2),
    "a question": replace(STEP, length=20, heads=8),
    "a question, blocks that end within a token": replace(STEP, length=12, heads=7, kv_heads=1),
    "a question longer than the window": replace(STEP, length=40, window=7),
    "a question, left padding": replace(STEP, length=40, batch=3, mask="left", sinks=True),
    "a question, right padding": replace(STEP, length=40, batch=2, mask="right", group=40),
    "a question of wide heads": replace(STEP, length=20, dim=256, softcap=5.0),
    "a question in float16": replace(STEP, length=40, dtype=torch.float16),
    **{f"rotary {i}": replace(STEP, rotary=r) for i, r in enumerate(ROTARIES)},
    **{f"head of {d}": replace(STEP, total=40, dim=d) for d in (64, 80, 96, 128, 256)},
}


@pytest.mark.parametrize("name", STEPS)
def test_decode_errs_no_more_than_its_precision_does(name, device):
    check(STEPS[name], device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_every_tile_to_choose_from_is_right(dim, dtype):
    """Compiled, as the device runs them, at lengths that no tile divides."""
    device = torch.device("cuda")
    capability = torch.cuda.get_device_capability()
    size = torch.empty((), dtype=dtype).element_size()
    wide = 1 << (dim - 1).bit_length()
    shape = Case(1111, window=300, group=7, batch=2, heads=4, kv_heads=2, dim=dim, dtype=dtype)
    for prefill in candidates("prefill", capability, wide, size):
        check(replace(shape, tiles=prefill), device)
        check(replace(shape, length=333, mask="left", tiles=prefill), device)
    for step in candidates("decode", capability, wide, size):
        check(replace(shape, length=1, mask="left", tiles=step), device)
        check(replace(shape, length=5, tiles=step), device)
    for question in candidates("question", capability, wide, size):
        check(replace(shape, length=77, mask="left", tiles=question), device)


@pytest.mark.parametrize(("parts", "launches"), [(1, 2), (2, 4)])
def test_a_prefill_in_several_launches_is_the_whole(parts, launches, device, monkeypatch):
    """Kv heads a few at a time, and queries in halves, as long prefills are done."""
    case = Case(100, window=20, heads=4, kv_heads=4 // parts, batch=1)
    row_bytes = 16 * 4
    rows = (128, 128)
    fits = 2 if parts == 1 else 0
    monkeypatch.setattr(launch, "_SCRATCH_BYTES", fits * sum(rows) * row_bytes + 1)
    calls = []
    attend = launch._Prefill.attend
    monkeypatch.setattr(
        launch._Prefill, "attend", lambda *args: (calls.append(args), attend(*args))[1]
    )
    check(case, device)
    assert len(calls) == launches


@pytest.mark.parametrize("tiles", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_the_log_sum_exp_is_that_of_all_scores(tiles, device):
    """By a sink of score 0: the share of the others is the sigmoid of their log-sum-exp."""
    case = Case(40, 6, heads=2, batch=2, mask="left")
    q, k, v = tensors(case, device)
    mask = padding(case, device)
    options = {"rotary": layout(16), "settings": SelfExtend(3, 10)}
    shares = self_extend_attention(
        q.double(), k.double(), torch.ones_like(v).double(), impl="reference", key_mask=mask,
        sinks=torch.zeros(2, device=device), **options,
    )[..., 0]  # fmt: skip
    _, lse = attention_with_lse(
        q, k, v, spec_of(scaling=0.25, **options), tiles=tiles, with_lse=True,
        bounds=bounds_of(mask, case.total)[0],
    )  # fmt: skip
    torch.testing.assert_close(lse.double(), shares.logit(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tiles", [PREFILL, DESCRIPTORS, DECODE], ids=lambda t: type(t).__name__)
def test_what_is_past_the_end_of_a_static_cache_does_not_matter(tiles, device):
    """Not even if it is no number: unused slots of a buffer may hold anything."""
    case = Case(40, 8)
    q, k, v = tensors(case, device)
    spec = spec_of(layout(16), SelfExtend(3, 10), scaling=0.25)
    expected, _ = attention_with_lse(q, k, v, spec, tiles=tiles)
    spare = torch.full_like(k[:, :, :30], torch.nan)
    bounds = torch.tensor([[0, 40, 40]], dtype=torch.int32, device=device)
    k, v = torch.cat([k, spare], 2), torch.cat([v, spare], 2)
    out, _ = attention_with_lse(q, k, v, spec, tiles=tiles, bounds=bounds)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)


def test_strided_tensors_are_read_in_place(device):
    """As a model hands them over: heads after tokens, values a slice of a larger buffer."""
    case = Case(40, heads=2, kv_heads=2)
    q, k, v = tensors(case, device)
    options = {"rotary": layout(16), "settings": SelfExtend(3, 10), "impl": "triton"}
    expected = self_extend_attention(q, k, v, **options)
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    v = torch.cat([v, v], 2)[:, :, :40]
    torch.testing.assert_close(self_extend_attention(q, k, v, **options), expected)


@pytest.mark.parametrize("total", [FINE - 1, FINE, 70_000, MAX_POSITIONS - 1])
def test_angles_of_far_positions_are_exact_to_float32(total):
    rates = layout(64).inv_freq
    table = angle_table(rates, torch.device("cpu")).double()
    fine, coarse = table[total % FINE], table[FINE + total // FINE]
    cos = coarse[0] * fine[0] - coarse[1] * fine[1]
    exact = (total * torch.tensor(rates, dtype=torch.float64)).cos()
    assert (cos - exact).abs().max() < 2e-7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": torch.zeros(1, 1, 8, 16).double()}, "not all of one kind"),
        ({"k": torch.zeros(1, 1, 16, 8).mT}, "not contiguous"),
        ({"q": torch.zeros(1, 1, 8, 512), "k": torch.zeros(1, 1, 8, 512)}, "larger than 256"),
        ({"k": torch.zeros(1, 1, 1, 16).expand(1, 1, MAX_POSITIONS + 1, 16)}, "more than 1048576"),
        ({"scaling": 0.0}, "not positive"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(change, reason):
    call = {name: torch.zeros(1, 1, 8, 16) for name in "qkv"} | {"scaling": 1.0} | change
    assert reason in why_not(**call)


def test_on_a_cpu_the_reason_is_the_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1, 1, 8, 16)
    options = {"rotary": layout(16), "settings": SelfExtend(2, 4)}
    with pytest.raises(ValueError, match=r"impl='triton' can't serve this call: .* on 'cpu'"):
        self_extend_attention(x, x, x, impl="triton", **options)
    self_extend_attention(x, x, x, impl="auto", **options)


def test_padding_between_tokens_is_refused_by_name_and_served_by_auto(device):
    case = Case(40, batch=1)
    q, k, v = tensors(case, device)
    mask = torch.ones(1, 40, dtype=torch.bool, device=device)
    mask[0, 5:9] = False
    options = {"rotary": layout(16), "settings": SelfExtend(3, 10), "key_mask": mask}
    with pytest.raises(ValueError, match="there is padding between the tokens of a row"):
        self_extend_attention(q, k, v, impl="triton", **options)
    expected = self_extend_attention(q, k, v, impl="reference", **options)
    torch.testing.assert_close(self_extend_attention(q, k, v, **options), expected)


def test_gradients_are_refused():
    x = torch.zeros(1, 1, 8, 16, requires_grad=True)
    with pytest.raises(ValueError, match="impl='triton' computes no gradients"):
        self_extend_attention(x, x, x, rotary=layout(16), settings=SelfExtend(2, 4), impl="triton")


def test_bounds_and_masks_say_the_same():
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    bounds, holes = bounds_of(mask, 4)
    assert bounds.tolist() == [[1, 3, 4], [0, 4, 4], [0, 0, 4]]
    assert not holes.any()
    assert torch.equal(mask_of(bounds, 4), mask)
    assert bounds_of(torch.tensor([[True, False, True]]), 3)[1].item()


def test_holes_stop_a_captured_graph():
    with pytest.raises(RuntimeError, match=HOLES[:40]):
        refuse_holes(torch.tensor([False, True]))


def test_bounds_serve_the_other_implementations_too():
    """A static cache's buffer, half of it unused."""
    q, k, v = tensors(Case(40, 8, batch=2), torch.device("cpu"))
    bounds = torch.tensor([[0, 30, 30], [7, 30, 30]], dtype=torch.int32)
    options = {"rotary": layout(16), "settings": SelfExtend(3, 10)}
    mask = mask_of(bounds, 30)
    expected = self_extend_attention(
        q, k[:, :, :30], v[:, :, :30], impl="reference", key_mask=mask, **options
    )
    for impl in ("reference", "blocked", "auto"):
        out = self_extend_attention(q, k, v, impl=impl, bounds=bounds, **options)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bounds": torch.zeros(1, 3)}, r"bounds must be int32 \[1, 3\], got torch.float32"),
        (
            {
                "bounds": torch.zeros(1, 3, dtype=torch.int32),
                "key_mask": torch.ones(1, 8, dtype=torch.bool),
            },
            "give key_mask or bounds, not both",
        ),
    ],
)
def test_bounds_that_do_not_fit_are_refused(wrong, message):
    x = torch.zeros(1, 1, 8, 16)
    with pytest.raises(ValueError, match=message):
        self_extend_attention(x, x, x, rotary=layout(16), settings=SelfExtend(2, 4), **wrong)


@pytest.mark.parametrize("length", [1, 40])
def test_a_compiled_function_has_no_graph_break(length, device):
    """One opaque operator; the same numbers as without compiling."""
    case = Case(40, length, heads=2)
    q, k, v = tensors(case, device)
    bounds = torch.tensor([[0, 40, 40]], dtype=torch.int32, device=device)

    def call(q, k, v, bounds):
        return self_extend_attention(
            q, k, v, rotary=layout(16), settings=SelfExtend(3, 10), impl="triton", bounds=bounds
        )

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v, bounds), call(q, k, v, bounds))
    assert math.isfinite(compiled(q, k, v, bounds).sum().item())
