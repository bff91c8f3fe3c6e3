"""Measure how each attention layer of a model rotates its queries and keys.

One short forward, in which every attention module runs twice: first with its rotation replaced by
the identity, then as it is. What turns the queries and keys of the first run into those of the
second is the layer's rotary layout. Nothing is looked up by the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask

from selfextend_rag.model.attention_fn import (
    implementations,
    previous_attention,
    previous_mask,
    registered,
    run_previous,
)
from selfextend_rag.model.hooks import Args, Asked, Kwargs, argument_index, unrotated_arguments
from selfextend_rag.model.report import LayerReport
from selfextend_rag.rope import RotaryLayout

_PREFIX = "self_extend_probe_on_"
_MOST_ROUNDINGS = 4.0  # a layout may be off by this many roundings of the model's dtype
_FARTHEST = 2048  # no probed position is at or beyond this
_KNOWN = frozenset({"position_ids", "s_aux"})


@dataclass
class Call:
    """What one call of the attention function saw, and its output ``[B, T, H, Dv]``."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mask: str  # "causal", "local" (sliding, chunked), "own" (made by the model), or "foreign"
    arguments: Kwargs


@dataclass
class Layer:
    """One attention module, and its calls in one forward."""

    name: str
    takes_rotation: bool  # it is handed ``position_embeddings``
    rotated: list[Call] = field(default_factory=list)
    raw: list[Call] = field(default_factory=list)  # the same without the rotation


def probe_rows(
    model: PreTrainedModel, tokens: int, *, padding: int = 0, far: bool
) -> dict[str, Tensor]:
    """Return a row of ordinary tokens and, behind any padding, a second one with its beginning.

    As a model's arguments by name, ``[B, T]`` each. The last row may be at far positions.
    """
    ids = sample_tokens(model, tokens)
    if padding:
        ids = torch.cat([ids, torch.cat([ids[:, :padding], ids[:, :-padding]], dim=1)])
    mask = torch.ones_like(ids)
    mask[1:, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    if far:
        positions[-1] += max(0, min(_trained_positions(model), _FARTHEST) - tokens)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


class _Recorder:
    """The calls of one forward, and what the masks of its layers are."""

    def __init__(self, padding: Tensor) -> None:
        self.calls: list[Call] = []
        self.padding = padding  # [B, T] bool, which masks of plain causal layers have to be
        self.local_masks: list[tuple[Tensor, Tensor | None]] = []  # ours, and what the layer wants
        self.foreign: set[nn.Module] = set()

    def kind_of(self, asked: Asked) -> tuple[str, Tensor | None]:
        """Return what a mask is, and the one that the previous implementation would get."""
        mask = asked.mask
        if foreign_tensors(asked.arguments):
            self.foreign.add(asked.module)
        if asked.module in self.foreign:
            return "foreign", mask
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1:3] == (1, 1):
            seen = mask[:, 0, 0]
            if seen.shape == self.padding.shape and torch.equal(seen.cpu(), self.padding.cpu()):
                return "causal", mask
        if isinstance(mask, Tensor):
            for known, wanted in self.local_masks:
                if mask is known or (mask.shape == known.shape and torch.equal(mask, known)):
                    return "local", wanted
        return "own", mask


_recorder: ContextVar[_Recorder] = ContextVar("selfextend_rag_probe")


def _probe_attention(asked: Asked, previous: str) -> tuple[Tensor, None]:
    recorder = _recorder.get()
    kind, mask = recorder.kind_of(asked)
    given = (asked.module, asked.query, asked.key, asked.value)
    if kind == "causal":
        output, _ = previous_attention(asked, previous)
    elif kind == "local":
        output, _ = run_previous(replace(asked, mask=mask), previous)
    else:  # the layer will be refused
        output = _plausible_output(*given[1:])
    recorder.calls.append(Call(*given, output, kind, asked.arguments))
    return output, None


def _probe_mask(
    batch_size: int, q_length: int, kv_length: int, *args: Any, previous: str, **kwargs: Any
) -> Tensor | None:
    if kwargs.get("mask_function", causal_mask_function) is causal_mask_function:
        given: Tensor | None = kwargs.get("attention_mask")
        if given is not None:
            return given[:, None, None, :kv_length].bool()
        shape = (batch_size, 1, 1, kv_length)
        return torch.ones(shape, dtype=torch.bool, device=kwargs.get("device"))
    wanted = previous_mask(previous)(batch_size, q_length, kv_length, *args, **kwargs)
    kwargs["allow_is_causal_skip"] = False
    mask: Tensor | None = sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)
    if mask is not None and not bool(mask.triu(1).any()):  # no encoder's
        _recorder.get().local_masks.append((mask, wanted))
    return mask


def _plausible_output(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Some causal attention, ``[B, T, H, Dv]``."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query.float() @ key.float().mT) * query.shape[-1] ** -0.5
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1).to(value.dtype)
    out: Tensor = weights @ value
    return out.transpose(1, 2).contiguous()


def foreign_tensors(arguments: Kwargs) -> str:
    """Name the tensors handed to an attention function beyond the ones it knows."""
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    return ", ".join(name for name, x in tensors.items() if x.numel() > 1 and name not in _KNOWN)


@torch.no_grad()
def record(
    model: nn.Module,
    rows: dict[str, Tensor],
    run: Callable[..., Tensor],
    rotating: set[nn.Module] | None = None,
) -> tuple[list[Layer], Tensor]:
    """Return a stock model's attention layers, in running order, and its logits.

    ``run`` is given the rows by name, runs the model and returns logits. The modules that
    are ``rotating`` run twice; those that call attention are not known before, so they are guessed
    to be the innermost ones that take ``position_embeddings``, and a wrong guess costs a forward.
    """
    places = {x: argument_index(x) for x in (model.modules() if rotating is None else rotating)}
    twice = rotating
    if twice is None:
        takers = {x for x, place in places.items() if place is not None}
        twice = {x for x in takers if takers.isdisjoint([*x.modules()][1:])}
    recorder = _Recorder(rows["attention_mask"].bool())
    handed: set[nn.Module] = set()
    raw: list[Call] = []

    def enter(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        place = places[module]
        positional = place is not None and place < len(args)
        if not positional and kwargs.get("position_embeddings") is None:
            return
        handed.add(module)
        if module in twice:
            before, recorder.calls = recorder.calls, raw
            args, kwargs = unrotated_arguments(place, args, kwargs)
            module.forward(*args, **kwargs)
            recorder.calls = before

    token = _recorder.set(recorder)
    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in places]
    name = partial(registered, _PREFIX, attention=_probe_attention, mask=_probe_mask)
    try:
        with implementations(model, name):
            logits = run(**rows)
    finally:
        _recorder.reset(token)
        for hook in hooks:
            hook.remove()
    attending = {call.module for call in recorder.calls}
    if not attending & handed <= twice and rotating is None:
        return record(model, rows, run, attending & handed)
    return _layers(model, recorder.calls, raw, twice & handed), logits


def _layers(
    model: nn.Module, calls: list[Call], raw: list[Call], twice: set[nn.Module]
) -> list[Layer]:
    names = {module: name for name, module in model.named_modules()}
    layers: dict[nn.Module, Layer] = {}
    for call in calls:
        name = names.get(call.module, type(call.module).__name__)
        takes_rotation = argument_index(call.module) is not None
        layers.setdefault(call.module, Layer(name, takes_rotation)).rotated.append(call)
    for call in [*(x for x in calls if x.module not in twice), *raw]:
        if call.module in layers:
            layers[call.module].raw.append(call)
    unrotated: dict[int, Tensor] = {}
    for layer in layers.values():
        for call, plain in zip(layer.rotated, layer.raw, strict=False):
            # a layer that shares the keys of one before it got them rotated in both runs
            plain.key = unrotated.get(id(plain.key), plain.key)
            unrotated[id(call.key)] = plain.key
    return list(layers.values())


def judge(layer: Layer, layouts: Iterable[RotaryLayout], positions: Tensor) -> LayerReport:
    """Return what to do with a layer; it has one of ``layouts``, and positions are ``[B, T]``."""
    if len(layer.rotated) != len(layer.raw):
        return LayerReport(layer.name, "refused", "its calls differ from run to run")
    kinds = {call.mask for call in layer.rotated}
    if kinds == {"local"}:
        return LayerReport(layer.name, "left alone", "sliding or chunked window")
    if all(
        torch.equal(a.query, b.query) and torch.equal(a.key, b.key)
        for a, b in zip(layer.rotated, layer.raw, strict=True)
    ):
        outside = "" if layer.takes_rotation else " from outside"
        return LayerReport(layer.name, "left alone", f"no rotary embedding{outside}")
    if "foreign" in kinds:
        return LayerReport(layer.name, "refused", "scores depend on more than positions")
    if kinds != {"causal"}:
        return LayerReport(layer.name, "refused", "attention mask made by the model")
    errors = [(_layout_error(layer, x, positions), x) for x in layouts]
    error, layout = min(errors, key=lambda found: found[0], default=(float("inf"), None))
    if error > _MOST_ROUNDINGS:
        return LayerReport(layer.name, "refused", f"unknown rotary layout (off by {error:.3g})")
    return LayerReport(layer.name, "extended", "causal attention over all tokens", layout)


def rotary_layouts(model: nn.Module, head_dim: int) -> Iterator[RotaryLayout]:
    """Yield every layout that the rotary modules within ``model`` may have."""
    found: dict[tuple[tuple[float, ...], float], None] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name and not buffer.is_meta:
                scale = getattr(module, name.replace("inv_freq", "attention_scaling"), 1.0)
                found[tuple(buffer.double().flatten().tolist()), float(scale)] = None
    for inv_freq, scale in found:
        if 2 * len(inv_freq) > head_dim:  # of other layers, such as a vision tower's
            continue
        for offset in dict.fromkeys((0, head_dim - 2 * len(inv_freq))):
            for pairing in ("half", "interleaved") if offset >= 0 else ():
                for sign in (1, -1):
                    yield RotaryLayout(inv_freq, pairing, offset, sign, scale)


def _layout_error(layer: Layer, layout: RotaryLayout, positions: Tensor) -> float:
    """The largest difference that a layout leaves, in roundings of the largest value."""
    worst, angles = 0.0, int(positions.max()) * torch.finfo(torch.float32).eps
    for rotated, raw in zip(layer.rotated, layer.raw, strict=True):
        for there, here in ((rotated.query, raw.query), (rotated.key, raw.key)):
            if here.shape[2] != positions.shape[-1]:  # it attends over more than the tokens
                return float("inf")
            ours = layout.rotate(here.double(), positions.to(here.device))
            # the model's own rotation is rounded to its dtype, and its angles are in float32
            rounding = max(torch.finfo(there.dtype).eps, angles)
            unit = rounding * there.abs().max().double()
            worst = max(worst, float((ours - there.double()).abs().max() / unit))
            if worst > 1e3:
                return worst
    return worst


def _trained_positions(model: PreTrainedModel) -> int:
    """A number of positions within which no rotary scaling begins."""
    text = model.config.get_text_config(decoder=True)
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    limits.append(getattr(text, "original_max_position_embeddings", None))
    scaling = getattr(text, "rope_parameters", None) or {}
    for entry in (scaling, *(x for x in scaling.values() if isinstance(x, dict))):
        limits.append(entry.get("original_max_position_embeddings"))
    return min([int(x) for x in limits if isinstance(x, int) and x > 0] or [512])


def input_weight(model: PreTrainedModel) -> Tensor:
    """Return a tensor of the model's input embeddings; rounded ones have buffers alone."""
    embeddings = model.get_input_embeddings()
    return next(chain(embeddings.parameters(), embeddings.buffers()))


def sample_tokens(model: PreTrainedModel, length: int) -> Tensor:
    """Return ordinary tokens ``[1, length]``: none that the configuration gives a meaning."""
    config = model.config
    text = config.get_text_config(decoder=True)
    special = {
        value
        for source in (config, text)
        for name, value in vars(source).items()
        if name.endswith(("_token_id", "_token_index", "_index")) and isinstance(value, int)
    }
    weight = input_weight(model)
    vocabulary = int(getattr(text, "vocab_size", 0) or weight.shape[0])
    usable = range(1, vocabulary) if vocabulary < 4096 else range(100, 4096)
    ordinary = [token for token in usable if token not in special]
    chosen = [ordinary[(7 + 37 * i) % len(ordinary)] for i in range(length)]
    # of offloaded weights the device is "meta": accelerate moves the ids
    return torch.tensor([chosen], device="cpu" if weight.is_meta else weight.device)
