"""Rotary position embedding at any given positions.

A model's rotary embedding is described by a measured `RotaryLayout`. Tables are computed in float64
and applied in float32 at least, whatever the precision of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Pairing = Literal["half", "interleaved"]
_AT_ONCE = 1 << 17  # numbers rotated at a time: input and output stay in a core's cache
_AT_ONCE_ELSEWHERE = 1 << 25  # on other devices a small step costs more than it saves


class RotaryTables(NamedTuple):
    """Cosines ``[..., T, R]``, one for each rotary dimension, and sines ``[..., T, R / 2]``."""

    cos: Tensor
    sin: Tensor

    def at(self, rows: Tensor | slice) -> RotaryTables:
        """Return the tables of some of ``T`` positions."""
        return RotaryTables(self.cos[rows], self.sin[rows])


@dataclass(frozen=True)
class RotaryLayout:
    """Which dimensions of a head are rotated together, and how fast.

    Args:
        inv_freq: angle per position of each pair, in radians, R / 2 numbers.
        pairing: ``"half"`` rotates dimension i with i + R / 2, ``"interleaved"`` 2i with 2i + 1.
        offset: first of the R rotary dimensions within the head; the others pass unchanged.
        sign: 1, or -1 for models that rotate the other way.
        scale: factor on the rotated dimensions (YaRN and LongRoPE scale queries and keys).
    """

    inv_freq: tuple[float, ...]
    pairing: Pairing = "half"
    offset: int = 0
    sign: int = 1
    scale: float = 1.0

    @property
    def rotary_dim(self) -> int:
        """R, how many dimensions of a head are rotated."""
        return 2 * len(self.inv_freq)

    def tables(self, positions: Tensor, like: Tensor) -> RotaryTables:
        """Return what `rotate` needs for tensors ``like`` this at positions ``[T]``, ``[B, T]``."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        inv_freq = torch.tensor(self.inv_freq, dtype=torch.float64, device=positions.device)
        angles = positions.to(torch.float64).unsqueeze(-1) * inv_freq
        cos = (angles.cos() * self.scale).to(dtype)
        sin = (angles.sin() * (self.scale * self.sign)).to(dtype)
        both = torch.cat([cos, cos], -1) if self.pairing == "half" else cos.repeat_interleave(2, -1)
        return RotaryTables(both, sin)

    def rotate(
        self, x: Tensor, positions: Tensor | RotaryTables, out: Tensor | None = None
    ) -> Tensor:
        """Return ``x`` rotated to ``positions``.

        Args:
            x: ``[B, H, T, D]``; a float64 tensor is rotated in float64, any other in float32.
            positions: integers ``[T]``, or ``[B, T]`` where rows differ; or their tables.
            out: where to write the result, shaped as ``x``; may not overlap it.
        """
        begin, end = self.offset, self.offset + self.rotary_dim
        if x.shape[-1] < end:
            raise ValueError(f"rotary dimensions {begin}..{end} do not fit a head of {x.shape[-1]}")
        if isinstance(positions, Tensor):
            lone = positions.shape == (1,) and positions.device.type == "cpu"
            if lone and torch.is_inference_mode_enabled():  # in a step, all layers want the same
                positions = _of_one(self, int(positions), x.dtype)
            else:
                positions = self.tables(positions, x)
        cos, sin = positions
        if cos.ndim == 3:  # [B, T, R] -> [B, 1, T, R]
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        out = torch.empty_like(x) if out is None else out
        if begin:
            out[..., :begin] = x[..., :begin]
        if end < x.shape[-1]:
            out[..., end:] = x[..., end:]
        at_once = _AT_ONCE if x.device.type == "cpu" else _AT_ONCE_ELSEWHERE
        step = max(1, at_once // max(1, x[:, :, :1].numel()))
        for first in range(0, x.shape[2], step):
            rows = (..., slice(first, first + step), slice(begin, end))
            part = (..., slice(first, first + step), slice(None))
            self._rotate(x[rows], cos[part], sin[part], out[rows])
        return out

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
        """Rotate into ``out``; ``cos`` has both dimensions of each pair, ``sin`` has one."""
        x = x.to(cos.dtype)
        same = out.dtype == cos.dtype
        rotated = torch.mul(x, cos, out=out) if same else x * cos  # all dimensions in one pass
        (first, second), (to_first, to_second) = self._pairs(x), self._pairs(rotated)
        to_first.addcmul_(second, sin, value=-1)
        to_second.addcmul_(first, sin)
        if not same:
            out.copy_(rotated)

    def _pairs(self, rotary: Tensor) -> tuple[Tensor, Tensor]:
        if self.pairing == "half":
            half = self.rotary_dim // 2
            return rotary[..., :half], rotary[..., half:]
        return rotary[..., 0::2], rotary[..., 1::2]


@lru_cache(maxsize=64)
def _of_one(layout: RotaryLayout, position: int, dtype: torch.dtype) -> RotaryTables:
    """Return the tables of one position on the CPU, for use in inference mode alone."""
    return layout.tables(torch.tensor([position]), torch.empty(0, dtype=dtype))
