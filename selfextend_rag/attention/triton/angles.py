"""Cosines and sines of every position from two short tables, exact to float32.

``angle(position) = angle(position % 256) + angle(position - position % 256)``, so 256 + 4096 rows
in float64-made float32 serve a million positions: 1 MiB for each 64 pairs, where a row per position
would take as much memory as keys do.
"""

from __future__ import annotations

import torch
from torch import Tensor

FINE = 256  # rows for the low part of a position; the kernels know it as a constant
COARSE = 4096  # rows for the high part
MAX_POSITIONS = FINE * COARSE

_tables: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


def angle_table(inv_freq: tuple[float, ...], device: torch.device) -> Tensor:
    """Return ``[256 + 4096, 2, R / 2]`` float32: cosines and sines of fine, then coarse positions.

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
