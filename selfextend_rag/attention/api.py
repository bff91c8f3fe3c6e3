"""SelfExtend attention: checks the arguments and chooses an implementation."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from selfextend_rag.attention.blocked import blocked_attention
from selfextend_rag.attention.bounds import bounds_without_holes, mask_of
from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.attention.triton.dispatch import triton_attention, why_not
from selfextend_rag.positions import PositionMap
from selfextend_rag.rope import RotaryLayout

Impl = Literal["auto", "reference", "blocked", "triton"]
IMPLEMENTATIONS: tuple[Impl, ...] = ("auto", "reference", "blocked", "triton")
_log = logging.getLogger(__name__)


def self_extend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: RotaryLayout,
    settings: PositionMap,
    scaling: float | None = None,
    key_mask: Tensor | None = None,
    bounds: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    impl: Impl = "auto",
    grouped_keys: GroupedKeys | None = None,
    capacity: int = 0,
) -> Tensor:
    """Return causal SelfExtend attention, ``[B, H, T, Dv]``, zero in the rows of masked queries.

    The T queries are the last T of the S tokens, so one call serves a whole prefill (T = S), a
    later chunk, and a decode step (T = 1). A token's position is the number of unmasked tokens
    before it in its row: padding on either side, or between, takes no positions.

    Args:
        q: ``[B, H, T, D]``, not rotated.
        k: ``[B, Hkv, S, D]``, not rotated; H a multiple of Hkv, and S >= T.
        v: ``[B, Hkv, S, Dv]``.
        rotary: the model's rotary embedding.
        settings: group size and neighbor window; or another map of `selfextend_rag.maps`.
        scaling: factor on the scores, ``D ** -0.5`` when not given.
        key_mask: ``[B, S]`` bool, False at padding.
        bounds: in place of ``key_mask``, ``[B, 3]`` int32 on the device: the slots where each row
            begins and stops, and where the queries end (the same for all rows). With them k and v
            may be the whole buffer of a static cache, and ``"triton"`` lets no host wait.
        softcap: ``softcap * tanh(score / softcap)`` before the softmax, as in Gemma 2.
        sinks: ``[H]``, one more score per head with a value of zero, as in GPT-OSS.
        impl: ``"triton"`` (one kernel, CUDA, inference only, SelfExtend alone), ``"blocked"``
            (memory linear in S, any device, inference only), ``"reference"`` (dense,
            differentiable), or ``"auto"``: reference where a gradient is asked for, else on CUDA
            devices triton where it can, else blocked.
        grouped_keys: a cache layer's store of grouped, rotated keys, used by ``"blocked"`` and
            filled at short calls; its owner must notify it of every change to the cached keys.
        capacity: tokens to make space for when ``grouped_keys`` has to grow.

    Raises:
        ValueError: shapes that do not fit each other, an unknown ``impl``, or one that can't
            serve this call; the message says why.

    Source: arXiv 2401.01325.
    """
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    spec = AttentionSpec.of(settings, rotary=rotary, scaling=scaling, softcap=softcap, sinks=sinks)
    return attend(
        q, k, v, spec, key_mask=key_mask, bounds=bounds, impl=impl,
        grouped_keys=grouped_keys, capacity=capacity,
    )  # fmt: skip


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    key_mask: Tensor | None = None,
    bounds: Tensor | None = None,
    impl: Impl = "auto",
    grouped_keys: GroupedKeys | None = None,
    capacity: int = 0,
) -> Tensor:
    """Do what `self_extend_attention` does, with the layer's part of its arguments in ``spec``."""
    _check(q, k, v, spec, impl, key_mask=key_mask, bounds=bounds)
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if wants_grad and impl in ("blocked", "triton"):
        raise ValueError(f"impl={impl!r} computes no gradients; use impl='reference' or no_grad")
    if impl == "triton" or (impl == "auto" and q.is_cuda and not wants_grad):
        reason, found = why_not(q, k, v, spec.scaling), bounds
        if not spec.is_self_extend:
            reason = f"it computes SelfExtend alone, not {spec.method}"
        if key_mask is not None and not reason:
            found = bounds_without_holes(key_mask)
            reason = "" if found is not None else "there is padding between the tokens of a row"
        if not reason:
            return triton_attention(q, k, v, spec, bounds=found)
        if impl == "triton":
            raise ValueError(f"impl='triton' can't serve this call: {reason}; use impl='auto'")
        _log.debug("blocked attention in place of triton: %s", reason)
    if bounds is not None:
        end = int(bounds[0, 2])
        k, v, key_mask = k[:, :, :end], v[:, :, :end], mask_of(bounds, end)
    if impl == "reference" or wants_grad:
        return reference_attention(q, k, v, spec, key_mask=key_mask).to(v.dtype)
    return blocked_attention(
        q, k, v, spec, key_mask=key_mask, grouped_keys=grouped_keys, capacity=capacity
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, impl: str, **padding: Tensor | None
) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not (q.ndim == k.ndim == v.ndim == 4 and len(q) == len(k) == len(v)):
        raise ValueError(f"q, k and v must be [B, H, T, D] with one batch size, got {shapes}")
    if q.shape[3] != k.shape[3] or k.shape[1:3] != v.shape[1:3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"head counts or dimensions do not fit: {shapes}")
    if not 0 < q.shape[2] <= k.shape[2]:
        raise ValueError(f"need 0 < query length <= key length, got {shapes}")
    begin, end = spec.rotary.offset, spec.rotary.offset + spec.rotary.rotary_dim
    if end > q.shape[3]:
        raise ValueError(f"rotary dimensions {begin}..{end} do not fit heads of {q.shape[3]}")
    found = {name: given for name, given in padding.items() if given is not None}
    if len(found) > 1:
        raise ValueError("give key_mask or bounds, not both: each says where the padding is")
    for name, given in found.items():
        dtype, width = (torch.bool, k.shape[2]) if name == "key_mask" else (torch.int32, 3)
        if given.dtype != dtype or given.shape != (len(k), width):
            expected = f"{dtype} [{len(k)}, {width}]".removeprefix("torch.")
            raise ValueError(f"{name} must be {expected}, got {given.dtype} {tuple(given.shape)}")
