"""A layer's rotary embedding: measured from its module, checked, and put at grouped positions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.rope import RotaryLayout
from vllm_selfextend.plain import compiled_key_positions, key_positions

_MOST_ROUNDINGS = 4.0  # a layout may be off by so many roundings of the module's own arithmetic
_PROBED = 64  # positions at which the module runs


def measured_layout(module: Any, head_size: int, heads: int = 2) -> RotaryLayout:
    """Return the layout of a rotary module of vLLM.

    The angles are read from its table, the pairing and the place of the rotary dimensions from what
    it does to random queries and keys.

    Args:
        module: has ``cos_sin_cache``, ``[P, R]``, and what computes it in float32.
        head_size: D.
        heads: how many to try it on.

    Raises:
        UnsupportedModelError: it is no such module, or does something else too.
    """
    kind = type(module).__name__
    if not hasattr(module, "_compute_cos_sin_cache") or not hasattr(module, "cos_sin_cache"):
        raise UnsupportedModelError(f"a rotary embedding without a table ({kind})")
    table = module._compute_cos_sin_cache().to("cpu", torch.float32)
    stored = module.cos_sin_cache.to("cpu")
    if table.ndim != 2 or not torch.equal(table.to(stored.dtype), stored):
        raise UnsupportedModelError(f"the table of {kind} is not the one that it computes")
    with torch.device("cpu"):  # while vLLM builds a model, new tensors are on the model's device
        inv_freq, scale = angles_of(table)
        found = [
            layout
            for layout in _candidates(inv_freq, scale, head_size)
            if _error(module, layout, head_size, heads, len(table)) <= _MOST_ROUNDINGS
        ]
    if len(found) != 1:
        raise UnsupportedModelError(f"unknown rotary layout ({kind}; {len(found)} candidates fit)")
    return found[0]


def angles_of(table: Tensor) -> tuple[tuple[float, ...], float]:
    """Return angle per position of each pair, and scale, of ``[cos | sin]`` ``[P, R]`` in float32.

    An angle is known at position 1, then at 2, 4, ... with the whole turns that the one before
    says; last, the mean over all positions takes the rounding out.

    Raises:
        UnsupportedModelError: the table is not that of constant angles and one scale.
    """
    cos, sin = (x.double() for x in table.chunk(2, dim=-1))
    length = torch.hypot(cos, sin)
    scale = float(length.mean())
    scale = round(scale, 6) if abs(scale - round(scale, 6)) < 1e-7 else scale
    angles = torch.atan2(sin, cos)
    last, step, inv_freq = len(table) - 1, 1, angles[1]
    while step < last:
        step = min(2 * step, last)
        inv_freq = _unwrapped(angles[step], inv_freq * step) / step
    positions = torch.arange(len(table), dtype=torch.float64)[:, None]
    whole = _unwrapped(angles, inv_freq * positions)
    inv_freq = (positions * whole).sum(0) / positions.square().sum()
    off = (whole - inv_freq * positions).abs() / (1 + inv_freq * positions)
    rounding = torch.finfo(torch.float32).eps * _MOST_ROUNDINGS
    if float(off.max()) > rounding or float((length / scale - 1).abs().max()) > rounding:
        raise UnsupportedModelError("the angles of its rotary table are not constant per position")
    return tuple(inv_freq.tolist()), scale


def _unwrapped(angle: Tensor, near: Tensor) -> Tensor:
    """Return the angle plus the whole turns that bring it nearest to another."""
    return near + torch.remainder(angle - near + torch.pi, 2 * torch.pi) - torch.pi


def _candidates(
    inv_freq: tuple[float, ...], scale: float, head_size: int
) -> Iterator[RotaryLayout]:
    for offset in dict.fromkeys((0, head_size - 2 * len(inv_freq))):
        if offset >= 0:
            for sign in (1, -1):
                yield RotaryLayout(inv_freq, "half", offset, sign, scale)
                yield RotaryLayout(inv_freq, "interleaved", offset, sign, scale)


def _error(module: Any, layout: RotaryLayout, head_size: int, heads: int, end: int) -> float:
    """The largest difference to what the module does, in roundings."""
    make = torch.Generator().manual_seed(0)
    positions = torch.randint(end, (_PROBED,), generator=make)
    positions[0] = end - 1
    like = module.cos_sin_cache
    q, k = (torch.randn(_PROBED, heads * head_size, generator=make).to(like) for _ in range(2))
    both = module(positions.to(like.device), q.clone(), k.clone())
    alone, _ = module(positions.to(like.device), k.clone(), None)
    worst = 0.0
    for there, here in ((both[0], q), (both[1], k), (alone, k)):
        raw = here.view(_PROBED, heads, head_size).transpose(0, 1)[None].double().cpu()
        ours = layout.rotate(raw, positions)[0].transpose(0, 1).flatten(1)
        rounding = torch.finfo(like.dtype).eps + end * torch.finfo(torch.float32).eps
        unit = rounding * float(ours.abs().max())
        worst = max(worst, float((ours - there.cpu().double()).abs().max()) / unit)
    return worst


class GroupedRotary(nn.Module):
    """Takes the place of a layer's rotary module: keys at grouped positions, queries as they are.

    The module that was there rotates the keys, always within its table.

    Args:
        stock: that module.
        group_size: G.
        plain: for each token of a step, whether its request is plain; its key is at its own
            position then. Read at every step.
    """

    plain: Tensor

    def __init__(self, stock: nn.Module, group_size: int, plain: Tensor) -> None:
        super().__init__()
        self.stock = stock
        self.group_size = group_size
        self.register_buffer("plain", plain, persistent=False)

    def forward(
        self, positions: Tensor, query: Tensor, key: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the query, and the key rotated to the position of its group.

        Raises:
            ValueError: there is no key: the layer takes those of another one.
        """
        if key is None:
            raise ValueError("a layer of SelfExtend was given no keys to rotate")
        compiling = torch.compiler.is_compiling()
        place = compiled_key_positions if compiling else key_positions
        rotated, _ = self.stock(place(positions, self.plain, self.group_size), key, None)
        return query, rotated


def with_longer_table(module: Any, layout: RotaryLayout, length: int) -> Any:
    """Return a copy of a rotary module whose table reaches ``length`` positions.

    For layers that stay as they are, those with a sliding window: they see positions beyond P,
    though no distance beyond it. Angles are products in float32, as in the module's own rows and
    in transformers: more exact ones would make other answers of layers that nobody changed.
    """
    table = module.cos_sin_cache
    if length <= len(table):
        return module
    positions = torch.arange(len(table), length, device=table.device)
    inv_freq = torch.tensor(layout.inv_freq, dtype=torch.float32, device=table.device)
    angles = positions.float()[:, None] * inv_freq
    more = torch.cat([angles.cos(), angles.sin()], dim=-1) * layout.scale
    longer = copy.deepcopy(module)
    longer.cos_sin_cache = torch.cat([table, more.to(table.dtype)])
    return longer
