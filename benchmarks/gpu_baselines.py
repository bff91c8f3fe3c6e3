"""What `benchmarks/gpu.py` compares with: plain attention of torch, two passes of a library kernel,
and the form of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfextend_rag.attention.partial import cuda_flash, merge
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

Part = tuple[Tensor, Tensor]


def plain_ways(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> dict[str, Callable[[], Tensor]]:
    """Ordinary attention of rotated q and k, by each of torch's kernels that takes them."""
    names = ["FLASH_ATTENTION", "CUDNN_ATTENTION"] if q.is_cuda else ["MATH"]
    if q.is_cuda and not causal:
        names.append("EFFICIENT_ATTENTION")
    ways: dict[str, Callable[[], Tensor]] = {}
    for name in names:
        for gqa in (True, False):
            way = _plain(getattr(SDPBackend, name), gqa, q, k, v, causal)
            try:
                way()
            except RuntimeError:  # this kernel does not take these tensors as they are
                continue
            ways[name.split("_")[0].lower() + ("" if gqa else ", heads repeated")] = way
            break
    return ways


def _plain(
    backend: SDPBackend, gqa: bool, q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> Callable[[], Tensor]:
    if not gqa:
        share = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return run


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window: int | None = None) -> Part:
    """Flash attention with its log-sum-exp; dense on a CPU, for a dry run."""
    scaling = q.shape[3] ** -0.5
    if q.is_cuda:
        return cuda_flash(q, k, v, scaling=scaling, causal=causal, window=window)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    length, total = q.shape[2], k.shape[2]
    distance = torch.arange(length)[:, None] + total - length - torch.arange(total)
    unseen = (distance < 0) & causal | (distance >= (window or total + 1))
    scores = (q @ k.mT * scaling).masked_fill(unseen, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Part:
    """Causal attention by cuDNN, with its log-sum-exp."""
    if not q.is_cuda:
        return flash(q, k, v)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, True, False, scale=q.shape[3] ** -0.5
    )
    return out, lse.reshape(q.shape[:3])


def two_passes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: RotaryLayout,
    method: SelfExtend,
    square: Callable[[Tensor, Tensor, Tensor], Part] = flash,
) -> Tensor:
    """SelfExtend by a library's kernel: the grouped square, then the window, merged."""
    total, window, far = k.shape[2], method.neighbor_window, method.bands[-1]
    at = torch.arange(total, device=q.device)
    out, lse = flash(rotary.rotate(q, at), rotary.rotate(k, at), v, window=window)
    grouped = square(
        rotary.rotate(q[:, :, window:], far.query_position(at[window:])),
        rotary.rotate(k[:, :, : total - window], far.key_position(at[: total - window])),
        v[:, :, : total - window],
    )
    merge(out[:, :, window:], lse[:, :, window:], *grouped)
    return out


class Authors:
    """The form of the authors' repository, in our words: two partial attentions at every step.

    Keys are kept un-rotated; every call repeats them for each query head, rotates *all* of them
    twice, in the model's precision, and attends twice with a flash kernel: to the window and to
    the grouped rest.
    """

    def __init__(self, rotary: RotaryLayout, method: SelfExtend) -> None:
        self.rotary, self.method = rotary, method

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        share, window = q.shape[1] // k.shape[1], self.method.neighbor_window
        length, total = q.shape[2], k.shape[2]
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        at = torch.arange(total, device=q.device)
        asked = at[total - length :]
        near_q, near_k = self._rotate(q, asked), self._rotate(k, at)
        far_q = self._rotate(q, self.method.bands[-1].query_position(asked))
        far_k = self._rotate(k, self.method.bands[-1].key_position(at))
        if length == 1:
            near = flash(near_q, near_k[:, :, -window:], v[:, :, -window:], causal=False)
            far = flash(far_q, far_k[:, :, :-window], v[:, :, :-window], causal=False)
            return merge(*near, *far)[0]
        out, lse = flash(near_q, near_k, v, window=window)
        far = flash(far_q[:, :, window:], far_k[:, :, :-window], v[:, :, :-window])
        merge(out[:, :, window:], lse[:, :, window:], *far)
        return out

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        rates = torch.tensor(self.rotary.inv_freq, dtype=torch.float32, device=x.device)
        angles = positions.float()[:, None] * torch.cat([rates, rates])
        first, second = x.chunk(2, -1)
        swapped = torch.cat([-second, first], -1)
        return x * angles.cos().to(x.dtype) + swapped * angles.sin().to(x.dtype)


def flex_decode(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Any]:
    """Plain attention of one query by torch's compiled flex attention, which splits the keys."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, enable_gqa=True)
