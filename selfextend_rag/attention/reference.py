"""SelfExtend attention written as its definition: dense, slow, for any precision. The oracle.

So are the bands of other maps.

Shares no code with the fast implementations: rotation, masks and the softmax are spelled out here
on whole matrices. Differentiable. Memory grows with T x S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.rope import RotaryLayout


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, key_mask: Tensor | None = None
) -> Tensor:
    """Return SelfExtend attention, ``[B, H, T, Dv]``, zero in the rows of masked queries.

    Arguments as in `selfextend_rag.attention.self_extend_attention`. Scores and softmax are
    computed in float32, or in float64 when the inputs are.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    (batch, heads, length), total = q.shape[:3], k.shape[2]
    if key_mask is None:
        key_mask = torch.ones(batch, total, dtype=torch.bool, device=q.device)
    key_pos = (key_mask.long().cumsum(-1) - 1).clamp(min=0)  # [B, S]
    query_pos = key_pos[:, total - length :]  # [B, T]
    k = k.to(compute).repeat_interleave(heads // k.shape[1], dim=1)
    v = v.to(compute).repeat_interleave(heads // v.shape[1], dim=1)
    q = q.to(compute)
    if spec.log_scaled is not None:
        factor = ((query_pos.double() + 1).log() / math.log(spec.log_scaled)).clamp(min=1)
        q = q * factor[:, None, :, None].to(compute)

    queries, keys = query_pos[:, None, :, None], key_pos[:, None, None, :]
    scores = q.new_zeros(())
    for band in spec.bands:
        band_q = _rotate(q, band.query_position(query_pos), spec.rotary)
        band_k = _rotate(k, band.key_position(key_pos), spec.rotary)
        scores = torch.where(band.covers(queries, keys), band_q @ band_k.mT, scores)
    scores = scores * spec.scaling
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)

    slots = torch.arange(total, device=q.device)
    causal = slots[None, :] <= slots[total - length :, None]
    seen = causal & key_mask[:, None, None, :] & key_mask[:, None, total - length :, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    if spec.sinks is not None:
        column = spec.sinks.to(compute).view(1, heads, 1, 1).expand(batch, heads, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., :total].masked_fill(~seen, 0.0)
    return (weights @ v).to(v.dtype if q.dtype == torch.float64 else compute)


def _rotate(x: Tensor, positions: Tensor, rotary: RotaryLayout) -> Tensor:
    """Rotate by complex multiplication; ``positions`` is ``[B, T]``."""
    rates = torch.tensor(rotary.inv_freq, dtype=torch.float64, device=x.device)
    angles = positions.double()[:, None, :, None] * rates * rotary.sign  # [B, 1, T, R/2]
    factor = torch.polar(torch.full_like(angles, rotary.scale), angles)
    factor = factor.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    begin, end = rotary.offset, rotary.offset + rotary.rotary_dim
    part = x[..., begin:end]
    if rotary.pairing == "half":
        part = torch.stack(part.chunk(2, dim=-1), dim=-1)
    else:
        part = part.reshape(*part.shape[:-1], -1, 2)
    rotated = torch.view_as_real(torch.view_as_complex(part.contiguous()) * factor)
    rotated = torch.cat(rotated.unbind(-1), -1) if rotary.pairing == "half" else rotated.flatten(-2)
    return torch.cat([x[..., :begin], rotated, x[..., end:]], dim=-1)
