"""Rotary position embedding at any given positions.

A model's rotary embedding is described by a measured `RotaryLayout`. Tables are computed in float64
and applied in float32 at least, whatever the precision of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Pairing = Literal["half", "interleaved"]
_AT_ONCE = 1 << 17  # numbers rotated at a time: input and output stay in a core's cache


@dataclass(frozen=True)
class RotaryLayout:
    """Which dimensions of a head turn together, and how fast.

    Args:
        inv_freq: angle per position of each pair, in radians, R / 2 numbers.
        pairing: ``"half"`` turns dimension i with i + R / 2, ``"interleaved"`` 2i with 2i + 1.
        offset: first of the R rotary dimensions within the head; the others pass unchanged.
        sign: 1, or -1 for models that turn the other way.
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

    def tables(
        self, positions: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each ``[*positions.shape, R / 2]``, on the device of ``positions``."""
        inv_freq = torch.tensor(self.inv_freq, dtype=torch.float64, device=positions.device)
        angles = positions.to(torch.float64).unsqueeze(-1) * inv_freq
        cos = angles.cos() * self.scale
        sin = angles.sin() * (self.scale * self.sign)
        return cos.to(dtype), sin.to(dtype)

    def rotate(self, x: Tensor, positions: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``x`` rotated to ``positions``.

        Args:
            x: ``[B, H, T, D]``; a float64 tensor is rotated in float64, any other in float32.
            positions: ``[T]``, or ``[B, T]`` where rows stand at different positions; integers.
            out: where to write the result, shaped as ``x``; may not overlap it.
        """
        if x.shape[-1] < self.offset + self.rotary_dim:
            raise ValueError(
                f"rotary dimensions {self.offset}..{self.offset + self.rotary_dim} do not fit a "
                f"head of {x.shape[-1]}"
            )
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = self.tables(positions, compute)
        if positions.ndim == 2:  # [B, T, R/2] -> [B, 1, T, R/2]
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        out = torch.empty_like(x) if out is None else out
        self._copy_rest(x, out)
        step = max(1, _AT_ONCE // max(1, x[:, :, :1].numel()))
        for begin in range(0, x.shape[2], step):
            part = slice(begin, begin + step)
            self._turn(x[:, :, part], cos[..., part, :], sin[..., part, :], out[:, :, part])
        return out

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
        first, second = self._pairs(x)
        out_first, out_second = self._pairs(out)
        if x.dtype == cos.dtype:
            torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
            torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        else:
            first, second = first.to(cos.dtype), second.to(cos.dtype)
            out_first.copy_((first * cos).addcmul_(second, sin, value=-1))
            out_second.copy_((second * cos).addcmul_(first, sin))

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rotary = x.narrow(-1, self.offset, self.rotary_dim)
        if self.pairing == "half":
            half = self.rotary_dim // 2
            return rotary[..., :half], rotary[..., half:]
        return rotary[..., 0::2], rotary[..., 1::2]

    def _copy_rest(self, x: Tensor, out: Tensor) -> None:
        end = self.offset + self.rotary_dim
        if self.offset:
            out[..., : self.offset] = x[..., : self.offset]
        if end < x.shape[-1]:
            out[..., end:] = x[..., end:]
