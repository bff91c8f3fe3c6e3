"""One call of the Triton attention: its settings, and which kernel serves it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfextend_rag.attention.spec import AttentionSpec
from selfextend_rag.attention.triton.angles import angle_table
from selfextend_rag.attention.triton.decode import decode_attention, keeps_busier
from selfextend_rag.attention.triton.prefill import prefill_attention
from selfextend_rag.attention.triton.tiles import DecodeTiles, PrefillTiles
from selfextend_rag.positions import Band
from selfextend_rag.rope import Pairing, RotaryLayout

_NONE_FAR = Band(nearest=1 << 30)  # farther than any key: all are neighbors


@dataclass(frozen=True)
class Call:
    """The settings of one call as the kernels take them."""

    table: Tensor
    layout: dict[str, Any]  # OFFSET, PAIRS, INTERLEAVED
    sign: float
    rotary_scale: float
    window: int
    group: int
    shift: int  # added to the grouped positions of queries
    scale: float  # on scores, for a softmax of base 2
    cap: float
    has_cap: bool
    precision: str
    bounds: Tensor | None
    sinks: Tensor | None
    prefill_tiles: PrefillTiles | None = field(default=None)
    decode_tiles: DecodeTiles | None = field(default=None)


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, bounds: Tensor | None = None
) -> Tensor:
    """Return SelfExtend attention ``[B, H, T, Dv]``, zero in the rows of masked queries.

    While torch compiles, this is one opaque operator, ``selfextend_rag::attention``.

    Args:
        q, k, v, spec: as in `attend`; what `why_not` refuses must not come here.
        bounds: ``[B, 3]`` int32: for each row the slots where it begins and stops, and where the
            queries end; without it, rows fill all S slots. Slots past ``stop`` may hold anything.
    """
    if torch.compiler.is_compiling():
        rotary = spec.rotary
        return torch.ops.selfextend_rag.attention(
            q, k, v, bounds, spec.sinks, rotary.inv_freq, rotary.pairing == "interleaved",
            rotary.offset, rotary.sign, rotary.scale,
            [x for band in spec.bands for x in (band.nearest, band.group_size, band.shift)],
            spec.scaling, spec.softcap,
        )  # fmt: skip
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
    far = spec.far_band(k.shape[2]) or _NONE_FAR
    rotary = spec.rotary
    call = Call(
        table=angle_table(rotary.inv_freq, q.device),
        layout={
            "OFFSET": rotary.offset,
            "PAIRS": len(rotary.inv_freq),
            "INTERLEAVED": rotary.pairing == "interleaved",
        },
        sign=float(rotary.sign),
        rotary_scale=float(rotary.scale),
        window=far.nearest,
        group=far.group_size,
        shift=far.shift,
        scale=spec.scaling / math.log(2),
        cap=1.0 if spec.softcap is None else float(spec.softcap),
        has_cap=spec.softcap is not None,
        precision="ieee" if q.dtype == torch.float32 else "tf32",
        bounds=bounds,
        sinks=None if spec.sinks is None else spec.sinks.contiguous(),
        prefill_tiles=tiles if isinstance(tiles, PrefillTiles) else None,
        decode_tiles=tiles if isinstance(tiles, DecodeTiles) else None,
    )
    batch, heads, length, _ = q.shape
    out = v.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
    lse = q.new_empty((batch, heads, length), dtype=torch.float32) if with_lse else None
    is_decode = isinstance(tiles, DecodeTiles) or (tiles is None and keeps_busier(q, k))
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        (decode_attention if is_decode else prefill_attention)(q, k, v, call, out, lse)
    return out, lse


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
    spec = AttentionSpec(
        rotary=RotaryLayout(tuple(inv_freq), pairing, offset, sign, rotary_scale),
        bands=tuple(Band(*bands[i : i + 3]) for i in range(0, len(bands), 3)),
        scaling=scaling,
        softcap=softcap,
        sinks=sinks,
    )
    return attention_with_lse(q, k, v, spec, bounds=bounds)[0]


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    batch, heads, length, _ = q.shape
    return v.new_empty(batch, length, heads, v.shape[3]).transpose(1, 2)
