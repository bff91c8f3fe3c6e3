"""What attention computes, over a block of keys, and its parts merged by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from selfextend_rag.positions import AnyBand, Band, PositionMap, SelfExtend
from selfextend_rag.rope import RotaryLayout

_FLASH_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SCORES_AT_ONCE = 1 << 23  # scores that the portable path holds at a time
_FEW = 32  # queries
_MERGED_AT_ONCE = 1 << 17  # 16-bit numbers on a CPU: in 32 bits they stay in its cache


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scoring:
    """How a softmax is made of the products of queries and keys."""

    scaling: float  # factor on the products
    softcap: float | None = None  # softcap * tanh(score / softcap), as in Gemma 2
    sinks: Tensor | None = None  # [H], one more score per head with a value of 0, as in GPT-OSS

    def capped(self, scores: Tensor) -> Tensor:
        """Return scaled products after the softcap, if there is one."""
        if self.softcap is None:
            return scores
        return self.softcap * torch.tanh(scores / self.softcap)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionSpec(Scoring):
    """Attention of queries and keys that come un-rotated: each pair is rotated as its band says.

    Bands are nearest first. SelfExtend's first one is at distance 0 and leaves positions as they
    are, and there is at most one after it. Bands of other maps are of any kind and number, and go
    to the implementations that say so.
    """

    rotary: RotaryLayout
    bands: Sequence[AnyBand]
    method: str = SelfExtend.name  # the map that the bands are of
    log_scaled: int | None = None  # see `PositionMap`

    @classmethod
    def of(
        cls,
        settings: PositionMap,
        *,
        rotary: RotaryLayout,
        scaling: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> AttentionSpec:
        """Return the spec of a layer under these settings."""
        if settings.rotary_scale != 1.0:
            rotary = replace(rotary, scale=rotary.scale * settings.rotary_scale)
        return cls(
            rotary=rotary, bands=settings.bands, method=settings.name,
            log_scaled=settings.log_scaled, scaling=scaling, softcap=softcap, sinks=sinks,
        )  # fmt: skip

    @property
    def is_self_extend(self) -> bool:
        """Whether the bands are SelfExtend's."""
        return self.method == SelfExtend.name

    @property
    def own_bands(self) -> tuple[Band, ...]:
        """The bands of SelfExtend.

        Raises:
            ValueError: they are another map's; the message names it.
        """
        if not self.is_self_extend:
            raise ValueError(f"this computes SelfExtend alone, not {self.method}")
        bands: tuple[Band, ...] = self.bands  # type: ignore[assignment]  # narrower than the spec says
        return bands

    def far_band(self, tokens: int) -> Band | None:
        """Return the second band, or None where no pair of so many tokens is that far apart."""
        if len(self.bands) == 1:
            return None
        _, far = self.own_bands
        return far if tokens > far.nearest else None


def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp): ``[B, H, T, Dv]`` in q's dtype and ``[B, H, T]``.

    On CPU this is torch's flash attention, on CUDA devices too in 16 bits without a bias;
    elsewhere, and with a softcap, plain matrix products over tiles of queries. On CPU the heads of
    few queries that share a key-value head are queries of that head: its keys are read once.

    Args:
        q: ``[B, H, T, D]``, T > 0.
        k, v: ``[B, Hkv, S, D]`` and ``[B, Hkv, S, Dv]``, S > 0, H a multiple of Hkv.
        scoring: the sinks are not read, see `add_sinks`.
        causal: query i sees keys 0..i; needs T = S.
        bias: ``[T, S]`` added to the scores, in q's dtype; 0 or -inf, no row all -inf.
    """
    if bias is None and scoring.softcap is None and cuda_flash_fits(q, v):
        return cuda_flash(q, k, v, scaling=scoring.scaling, causal=causal)
    if q.device.type != "cpu" or scoring.softcap is not None or q.dtype not in _FLASH_DTYPES:
        return _tiled(q, k, v, scoring, causal, bias)
    value_dim, head_dim = v.shape[-1], q.shape[-1]
    if value_dim < head_dim:  # the kernel wants equal head dimensions
        v = F.pad(v, (0, head_dim - value_dim))
    elif value_dim > head_dim:
        q, k = (F.pad(x, (0, value_dim - head_dim)) for x in (q, k))
    mask = None if bias is None else bias.expand(1, 1, *bias.shape)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    shape, length = q.shape[:3], q.shape[2]
    folded = length == 1 or (length <= _FEW and bias is None and not causal)
    if folded:
        q = q.reshape(len(q), k.shape[1], -1, q.shape[3])  # [B, Hkv, H / Hkv * T, D]
    rows = q.shape[2]
    if rows == 1 and q.element_size() == 2:  # products with one row of 16 bits are slow
        q = q.expand(-1, -1, 2, -1)
    out, lse = flash(q, k, v, 0.0, causal and not folded, attn_mask=mask, scale=scoring.scaling)
    out, lse = out[:, :, :rows, :value_dim], lse[:, :, :rows]
    return (out.reshape(*shape, value_dim), lse.reshape(shape)) if folded else (out, lse)


def cuda_flash_fits(q: Tensor, v: Tensor) -> bool:
    """Return whether torch's flash attention for CUDA devices takes these heads."""
    dim = q.shape[-1]
    return q.is_cuda and q.element_size() == 2 and v.shape[-1] == dim <= 256 and dim % 8 == 0


def cuda_flash(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, causal: bool = False, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp) by torch's flash attention for CUDA devices.

    Args:
        causal: the last query sees all keys, each one before it a key less.
        window: with ``causal``, a query sees that many keys.
    """
    left = -1 if window is None else window - 1
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, None,
        q.shape[2], k.shape[2], 0.0, causal, False,
        scale=scaling, window_size_left=left, window_size_right=0 if causal else -1,
    )  # fmt: skip
    return out.transpose(1, 2), lse


def _tiled(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, heads, length = q.shape[:3]
    kv_heads, total = k.shape[1], k.shape[2]
    q = q.reshape(batch, kv_heads, heads // kv_heads, length, -1)  # [B, Hkv, g, T, D]
    k, v = k.unsqueeze(2), v.unsqueeze(2)
    tile = max(1, _SCORES_AT_ONCE // (batch * heads * total))
    outs, lses = [], []
    for begin in range(0, length, tile):
        end = min(begin + tile, length)
        seen = end if causal else total
        scores = (q[..., begin:end, :] @ k[..., :seen, :].mT).to(compute) * scoring.scaling
        scores = scoring.capped(scores)
        if bias is not None:
            scores = scores + bias[begin:end].to(compute)
        if causal:
            rows = torch.arange(begin, end, device=q.device)
            cols = torch.arange(seen, device=q.device)
            scores = scores.masked_fill(cols > rows[:, None], -torch.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.unsqueeze(-1)).exp().to(v.dtype)
        outs.append((weights @ v[..., :seen, :]).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def merge(
    out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp) of one softmax over the keys of both parts.

    Args:
        out, other_out: ``[B, H, T, Dv]``, each already divided by its own softmax sum.
        lse, other_lse: ``[B, H, T]``, finite; float32, or float64 with float64 outputs.
        into: where to write the merged output; by default over ``out``.
    """
    into = out if into is None else into
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    if out.dtype == share.dtype:
        torch.lerp(out, other_out, share, out=into)
    else:
        step = out.shape[2]
        if out.device.type == "cpu":
            step = max(1, _MERGED_AT_ONCE // max(1, out[:, :, :1].numel()))
        for begin in range(0, out.shape[2], step):
            part = (..., slice(begin, begin + step), slice(None))
            wide, other = out[part].to(share.dtype), other_out[part].to(share.dtype)
            into[part] = torch.lerp(wide, other, share[part])
    return into, torch.logaddexp(lse, other_lse)


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Return ``out`` as if each softmax had one more score, ``sinks`` ``[H]``, of value 0."""
    share = torch.sigmoid(lse - sinks.to(lse.dtype).view(1, -1, 1)).unsqueeze(-1)
    return (out * share).to(out.dtype)
