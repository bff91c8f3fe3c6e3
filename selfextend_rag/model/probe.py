"""Measure how each attention layer of a model rotates its queries and keys.

Two short forwards. The first records queries and keys as they reach the attention function; the
second does the same with the rotation replaced by the identity, replaying the outputs of the first
so that every layer sees the same hidden states. What turns the second recording into the first is
the layer's rotary layout. Nothing is looked up by the model's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.model.hooks import unrotated_arguments
from selfextend_rag.rope import RotaryLayout

NAME = "self_extend_probe"
_TOKENS = 32
_MOST_ROUNDINGS = 4.0  # a layout may be off by this many roundings of the model's dtype
_FARTHEST = 2048  # no probed position lies at or beyond this


@dataclass
class Call:
    """What one call of the attention function saw."""

    module: nn.Module
    query: Tensor
    key: Tensor
    output: Tensor
    mask: str  # "causal", "local" (sliding, chunked), or "own" (made by the model)


@dataclass
class Layer:
    """One attention module: how it takes ``position_embeddings``, and its calls in one forward."""

    module: nn.Module
    name: str
    index: int | None
    rotated: list[Call] = field(default_factory=list)
    raw: list[Call] = field(default_factory=list)


class _Recorder:
    def __init__(self, replay: list[Call] | None = None) -> None:
        self.calls: list[Call] = []
        self.replay = replay
        self.local_masks: list[Tensor] = []
        self.foreign: dict[nn.Module, str] = {}

    def attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any
    ) -> tuple[Tensor, None]:
        if self.replay is None:
            output = _plausible_output(query, key, value)
        else:
            output = self.replay[len(self.calls)].output
        kind = "foreign" if module in self.foreign else self._kind(mask)
        self.calls.append(Call(module, query, key, output, kind))
        return output, None

    def _kind(self, mask: Any) -> str:
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1:3] == (1, 1):
            return "causal"
        if any(mask is local for local in self.local_masks):
            return "local"
        same = [m for m in self.local_masks if isinstance(mask, Tensor) and m.shape == mask.shape]
        return "local" if any(bool((m == mask).all()) for m in same) else "own"


_recorder: ContextVar[_Recorder] = ContextVar("selfextend_rag_probe")


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, None]:
    recorder = _recorder.get()
    extra = foreign_tensors(more)
    if extra:
        recorder.foreign[module] = extra
    return recorder.attention(module, query, key, value, attention_mask)


def _probe_mask(
    batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any
) -> Tensor | None:
    if kwargs.get("mask_function", causal_mask_function) is causal_mask_function:
        return torch.ones(
            batch_size, 1, 1, kv_length, dtype=torch.bool, device=kwargs.get("device")
        )
    kwargs["allow_is_causal_skip"] = False
    mask = sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)
    if mask is not None:
        _recorder.get().local_masks.append(mask)
    return mask


def _plausible_output(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Some causal attention, ``[B, T, H, Dv]``; any would do: the second forward replays it."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query.float() @ key.float().mT) * query.shape[-1] ** -0.5
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


_KNOWN = frozenset({"position_ids", "s_aux"})


def foreign_tensors(arguments: dict[str, Any]) -> str:
    """Name the tensors handed to an attention function beyond the ones it knows."""
    return ", ".join(
        name
        for name, x in arguments.items()
        if isinstance(x, Tensor) and x.numel() > 1 and name not in _KNOWN
    )


@contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Switch every configuration within ``model`` to the attention implementation ``name``."""
    before = {id(c): (c, c._attn_implementation) for c in configs(model)}
    for config, _ in before.values():
        set_implementation(config, name)
    try:
        yield
    finally:
        for config, previous in before.values():
            set_implementation(config, previous)


def configs(model: nn.Module) -> list[Any]:
    """Return the distinct configurations that the modules of ``model`` hold."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def set_implementation(config: Any, name: str | None) -> None:
    """Set the attention implementation of one configuration, not of those nested in it."""
    config._attn_implementation = {"": name}


def probe_layers(model: nn.Module, input_ids: Tensor, positions: Tensor | None) -> list[Layer]:
    """Return the attention layers of ``model`` with their recordings, in running order.

    Args:
        model: in evaluation mode.
        input_ids: ``[1, T]``.
        positions: ``[1, T]`` position ids to pass, or None to let the model count.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, _probe_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _probe_mask)
    with attention_implementation(model, NAME):
        first = _record(model, input_ids, positions, None)
        names = {module: name for name, module in model.named_modules()}
        layers: dict[nn.Module, Layer] = {}
        for call in first:
            if call.module not in layers:
                index = _argument_index(call.module)
                name = names.get(call.module, type(call.module).__name__)
                layers[call.module] = Layer(call.module, name, index)
            layers[call.module].rotated.append(call)
        hooks = [
            layer.module.register_forward_pre_hook(
                partial(_without_rotation, layer.index), with_kwargs=True
            )
            for layer in layers.values()
        ]
        try:
            second = _record(model, input_ids, positions, first)
        finally:
            for hook in hooks:
                hook.remove()
    for call in second:
        layers[call.module].raw.append(call)
    return list(layers.values())


def _record(
    model: nn.Module, input_ids: Tensor, positions: Tensor | None, replay: list[Call] | None
) -> list[Call]:
    recorder = _Recorder(replay)
    token = _recorder.set(recorder)
    more = {} if positions is None else {"position_ids": positions}
    try:
        model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **more
        )
    finally:
        _recorder.reset(token)
    return recorder.calls


def _without_rotation(
    index: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return unrotated_arguments(index, args, kwargs)


def _argument_index(module: nn.Module) -> int | None:
    names = list(inspect.signature(module.forward).parameters)
    return names.index("position_embeddings") if "position_embeddings" in names else None


def unrotated(layer: Layer) -> bool:
    """Return whether the layer sees the same queries and keys with and without rotation."""
    return all(
        torch.equal(a.query, b.query) and torch.equal(a.key, b.key)
        for a, b in zip(layer.rotated, layer.raw, strict=True)
    )


def rotary_candidates(model: nn.Module) -> list[tuple[tuple[float, ...], float]]:
    """Return the (inverse frequencies, scale) of every rotary module within ``model``."""
    found = []
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or buffer.is_meta:
                continue
            scale = getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0)
            candidate = (tuple(buffer.double().flatten().tolist()), float(scale))
            if candidate not in found:
                found.append(candidate)
    return found


def find_layout(
    layer: Layer, candidates: list[tuple[tuple[float, ...], float]], positions: Tensor
) -> tuple[RotaryLayout | None, float]:
    """Return the layout that turns raw queries and keys into rotated ones, and its error.

    The error is the largest absolute difference over the largest value, in units of the rounding
    of the layer's dtype; None for the layout if no candidate is within a few roundings.
    """
    best: tuple[RotaryLayout | None, float] = (None, float("inf"))
    head_dim = layer.raw[0].query.shape[-1]
    for inv_freq, scale in candidates:
        rotary_dim = 2 * len(inv_freq)
        for offset in dict.fromkeys((0, head_dim - rotary_dim)):
            if offset < 0:
                continue
            for pairing in ("half", "interleaved"):
                for sign in (1, -1):
                    layout = RotaryLayout(inv_freq, pairing, offset, sign, scale)
                    error = _error(layer, layout, positions)
                    if error < best[1]:
                        best = layout, error
    return best if best[1] <= _MOST_ROUNDINGS else (None, best[1])


def _error(layer: Layer, layout: RotaryLayout, positions: Tensor) -> float:
    worst = 0.0
    for rotated, raw in zip(layer.rotated, layer.raw, strict=True):
        for there, here in ((rotated.query, raw.query), (rotated.key, raw.key)):
            if here.shape[2] != len(positions):  # it attends over something other than the tokens
                return float("inf")
            turned = layout.rotate(here.double(), positions.to(here.device))
            unit = _rounding(there.dtype, int(positions.max())) * there.abs().max().double()
            worst = max(worst, float((turned - there.double()).abs().max() / unit))
            if worst > 1e3:
                return worst
    return worst


def _rounding(dtype: torch.dtype, farthest: int) -> float:
    """Rounding of the model's own rotation: of its dtype, and of angles counted in float32."""
    return max(torch.finfo(dtype).eps, farthest * torch.finfo(torch.float32).eps)


def spread_positions(limit: int, length: int = _TOKENS) -> list[int]:
    """Return increasing positions below ``limit``, close at first and then far apart."""
    limit = min(limit, _FARTHEST)
    if limit <= length:
        return list(range(length))
    positions = list(range(length // 2))
    ratio = ((limit - 1) / positions[-1]) ** (1 / (length - len(positions)))
    while len(positions) < length:
        positions.append(max(positions[-1] + 1, int(positions[-1] * ratio)))
    return positions
