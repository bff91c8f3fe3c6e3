"""Which calls the Triton kernels take, and how a spec becomes the numbers that they take."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.attention.triton.launch import (
    Call,
    decode_attention,
    keeps_busier,
    prefill_attention,
)
from selfextend_rag.attention.triton.tiles import DecodeTiles, PrefillTiles, capability_of
from selfextend_rag.positions import Band
from selfextend_rag.rope import Pairing, RotaryLayout

FINE = 256  # rows for the low part of a position; the kernels know it as a constant
COARSE = 4096  # rows for the high part
MAX_POSITIONS = FINE * COARSE
MAX_DIM = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (8, 0)
_INSTALLED = importlib.util.find_spec("triton") is not None

_tables: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def why_not(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> str:
    """Return why tensors that fit each other can't go to the Triton kernels; empty if they can."""
    if not _INSTALLED:
        return "triton is not installed (pip install 'selfextend-rag[gpu]')"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # slowly, on the CPU
    if q.device.type != "cuda" and not interpreted:
        return f"the tensors are on {q.device.type!r}, not on a CUDA device"
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        capability = capability_of(q.device)
        if capability < _OLDEST:
            return f"the GPU has compute capability {capability}, below {_OLDEST}"
    if not (q.dtype == k.dtype == v.dtype and q.dtype in _DTYPES):
        kinds = f"{q.dtype}, {k.dtype} and {v.dtype}"
        return f"q, k and v are {kinds}, not all of one kind of float32, float16, bfloat16"
    if q.dtype == torch.bfloat16 and q.device.type != "cuda":
        return "the interpreter multiplies no matrices of bfloat16"
    if not (q.device == k.device == v.device):
        return f"q, k and v are on {q.device}, {k.device} and {v.device}"
    if max(q.shape[3], v.shape[3]) > MAX_DIM:
        return f"heads of {q.shape[3]} and {v.shape[3]} dimensions are larger than {MAX_DIM}"
    if any(x.stride(3) != 1 and x.shape[3] > 1 for x in (q, k, v)):
        return "the head dimension is not contiguous in memory"
    if k.shape[2] > MAX_POSITIONS:
        return f"{k.shape[2]} tokens are more than {MAX_POSITIONS}"
    if not scaling > 0:
        return f"the scaling {scaling} is not positive"
    return ""


def angle_table(inv_freq: tuple[float, ...], device: torch.device) -> Tensor:
    """Return ``[256 + 4096, 2, R / 2]`` float32: cosines and sines of fine, then coarse positions.

    ``angle(position) = angle(position % 256) + angle(position - position % 256)``, so these rows,
    made in float64, serve a million positions exactly to float32: 1 MiB for each 64 pairs, where a
    row per position would take as much memory as keys do.

    Made once for each rotary embedding and device and never freed: a captured CUDA graph reads it.
    Sign and scale of a layout are applied by the kernels.
    """
    key = (inv_freq, device)
    if key not in _tables:
        rates = torch.tensor(inv_freq, dtype=torch.float64, device=device)
        fine = torch.arange(FINE, dtype=torch.float64, device=device)
        coarse = torch.arange(COARSE, dtype=torch.float64, device=device) * FINE
        angles = torch.cat([fine, coarse])[:, None] * rates
        _tables[key] = torch.stack([angles.cos(), angles.sin()], dim=1).float().contiguous()
    return _tables[key]


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, bounds: Tensor | None = None
) -> Tensor:
    """Return SelfExtend attention ``[B, H, T, Dv]``, zero in the rows of masked queries.

    While torch compiles, this is one opaque operator, ``selfextend_rag::attention``.

    Args:
        q, k, v, spec: as in `attend`; what `why_not` refuses must not come here.
        bounds: as in `attend`; slots outside of them may hold anything.
    """
    if torch.compiler.is_compiling():
        rotary = spec.rotary
        out: Tensor = torch.ops.selfextend_rag.attention(
            q, k, v, bounds, spec.sinks, rotary.inv_freq, rotary.pairing == "interleaved",
            rotary.offset, rotary.sign, rotary.scale,
            [x for band in spec.own_bands for x in (band.nearest, band.group_size, band.shift)],
            spec.scaling, spec.softcap,
        )  # fmt: skip
        return out
    return attention_with_lse(q, k, v, spec, bounds=bounds)[0]


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    bounds: Tensor | None = None,
    with_lse: bool = False,
    tiles: PrefillTiles | DecodeTiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention and, on request, the log-sum-exp ``[B, H, T]`` of its scores.

    The latter is float32, without sinks, and -inf in the rows of masked queries.

    Args:
        tiles: to be used in this call, which makes it a prefill or a decode step; by default
            `keeps_busier` decides, and the tiles are those of `tiles.py`.
    """
    lse = q.new_empty(q.shape[:3], dtype=torch.float32) if with_lse else None
    sinks = None if spec.sinks is None else spec.sinks.contiguous()
    table = angle_table(spec.rotary.inv_freq, q.device)
    call = Call(q, k, v, _new_output(q, v), lse, spec, sinks, bounds, table)
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        if isinstance(tiles, DecodeTiles) or (tiles is None and keeps_busier(q, k)):
            decode_attention(call, tiles)
        else:
            prefill_attention(call, tiles)
    return call.out, call.lse


def _new_output(q: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, _ = q.shape
    return v.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)


@torch.library.custom_op("selfextend_rag::attention", mutates_args=())
def _operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor | None,
    sinks: Tensor | None,
    inv_freq: Sequence[float],
    interleaved: bool,
    offset: int,
    sign: int,
    rotary_scale: float,
    bands: Sequence[int],
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """`triton_attention` of a spec in numbers; ``bands`` holds three for each band."""
    pairing: Pairing = "interleaved" if interleaved else "half"
    rotary = RotaryLayout(tuple(inv_freq), pairing, offset, sign, rotary_scale)
    made = tuple(Band(*bands[i : i + 3]) for i in range(0, len(bands), 3))
    spec = AttentionSpec(rotary=rotary, bands=made, scaling=scaling, softcap=softcap, sinks=sinks)
    return attention_with_lse(q, k, v, spec, bounds=bounds)[0]


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: object) -> Tensor:
    return _new_output(q, v)
