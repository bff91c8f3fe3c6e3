"""A built vLLM model: which of its layers are extended, linked before its weights are read.

Every attention layer is judged by itself. One that attends to all tokens gets keys at grouped
positions and attention by SelfExtend; one with a sliding window within P stays as it is; what can't
be proved is refused with the layer's name. When the weights are there, each extended layer runs
once on random numbers, to see that nothing but the measured rotation is done to its queries.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.paged import Angles
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.rope import RotaryLayout
from vllm_selfextend.cpu import SelfExtendCPUImpl
from vllm_selfextend.gpu import SelfExtendTritonImpl, reason_against
from vllm_selfextend.plain import PlainMarks
from vllm_selfextend.rotary import GroupedRotary, measured_layout, with_longer_table
from vllm_selfextend.settings import Resolved

_STATE = "_selfextend"  # of an attention layer: "linked", "verified", or "left alone"
_PROBED = 16  # tokens


@dataclass(frozen=True, slots=True)
class _Place:
    """An attention layer, the module that calls it, and that module's rotary embedding."""

    name: str
    attention: Any
    attention_child: str
    caller: nn.Module
    rotary: Any
    rotary_child: str


def link(model: nn.Module, resolved: Resolved, length: int, tokens: int) -> None:
    """Extend the layers of a model whose weights are not read yet.

    Args:
        model: as vLLM built it.
        resolved: G, W and P.
        length: the longest sequence that the engine will run, in tokens.
        tokens: the most new tokens of a step.

    Raises:
        UnsupportedModelError: a layer can't be extended; the message names it and says why.
    """
    angles: dict[RotaryLayout, Angles] = {}
    layouts: dict[tuple[int, int], RotaryLayout] = {}
    marks: PlainMarks | None = None
    for place in list(_places(model)):
        layout = _layout(place, resolved, layouts)
        if place.attention.sliding_window is not None:
            longer = with_longer_table(place.rotary, layout, length)
            setattr(place.caller, place.rotary_child, longer)
            setattr(place.attention, _STATE, "left alone")
            continue
        _check_table(place, min(length, resolved.pretraining_window))
        if marks is None:
            marks = PlainMarks(tokens, place.rotary.cos_sin_cache.device)
        _extend(place, layout, resolved, angles, marks)
    if marks is None:
        raise UnsupportedModelError("no layer of this model attends to all tokens: none to extend")


def _layout(
    place: _Place, resolved: Resolved, known: dict[tuple[int, int], RotaryLayout]
) -> RotaryLayout:
    """Return the rotary layout of a layer, measured unless it is among the ``known`` ones."""
    reason = _reason(place.attention, resolved)
    if reason:
        raise _refused(place.name, reason)
    key = id(place.rotary), place.attention.head_size
    if key not in known:
        try:
            known[key] = measured_layout(place.rotary, place.attention.head_size)
        except UnsupportedModelError as error:
            raise _refused(place.name, str(error)) from error
    return known[key]


def _check_table(place: _Place, positions: int) -> None:
    """Refuse a table that is shorter than the model's window: vLLM would read behind its end."""
    rows = len(place.rotary.cos_sin_cache)
    if rows < positions:
        reason = f"its rotary table has {rows} positions, and {positions} are used"
        raise _refused(place.name, reason)


def _extend(
    place: _Place,
    layout: RotaryLayout,
    resolved: Resolved,
    angles: dict[RotaryLayout, Angles],
    marks: PlainMarks,
) -> None:
    """Give a layer keys at grouped positions and attention by SelfExtend."""
    layer = place.attention
    spec = _spec(layer.impl, layout, resolved)
    if isinstance(layer.impl, TritonAttentionImpl):
        layer.impl = SelfExtendTritonImpl(layer.impl, spec, marks)
    else:
        shared = angles.setdefault(layout, Angles(spec))
        layer.impl = SelfExtendCPUImpl(layer.impl, spec, shared, marks)
    grouped = GroupedRotary(place.rotary, resolved.settings.group_size, marks.tokens)
    setattr(place.caller, place.rotary_child, grouped)
    setattr(layer, _STATE, "linked")


def _places(model: nn.Module) -> Iterator[_Place]:
    """Yield every attention layer with its surroundings; refuse what is not one of a decoder."""
    for name, module in model.named_modules():
        for child, layer in module.named_children():
            if not isinstance(layer, AttentionLayerBase):
                continue
            full = f"{name}.{child}" if name else child
            if type(layer) is not Attention:
                raise _refused(full, f"it is of the kind {type(layer).__name__}")
            near = [(n, m) for n, m in module.named_children() if _is_rotary(m)]
            if len(near) != 1:
                raise _refused(
                    full, f"{len(near)} rotary embeddings next to it, where exactly one is expected"
                )
            yield _Place(full, layer, child, module, near[0][1], near[0][0])


def _is_rotary(module: nn.Module) -> bool:
    return isinstance(module, RotaryEmbeddingBase) or "Rotary" in type(module).__name__


def _reason(layer: Any, resolved: Resolved) -> str:
    """Return why an attention layer can be neither extended nor left as it is, or nothing."""
    window, impl = layer.sliding_window, layer.impl
    if layer.attn_type != AttentionType.DECODER:
        return f"its attention is of the type {layer.attn_type}"
    if layer.kv_sharing_target_layer_name is not None:
        return f"it uses the keys of {layer.kv_sharing_target_layer_name}"
    if window is not None and window > resolved.pretraining_window:
        return f"its sliding window of {window} is wider than the pretraining window"
    if window is not None:
        return ""
    if type(impl) not in (CPUAttentionBackendImpl, TritonAttentionImpl):
        return f"its attention is computed by {type(impl).__name__}"
    if impl.alibi_slopes is not None:
        return "its scores depend on distances (ALiBi)"
    if layer.head_size_v != layer.head_size:
        return "its keys and values have different widths"
    if type(impl) is TritonAttentionImpl:
        return reason_against(impl, layer.dtype, _capability())
    return ""


def _capability() -> tuple[int, int]:
    from vllm.platforms import current_platform

    found = current_platform.get_device_capability()
    return (0, 0) if found is None else (found.major, found.minor)


def _spec(impl: Any, layout: RotaryLayout, resolved: Resolved) -> AttentionSpec:
    softcap = impl.logits_soft_cap or None  # 0 is none
    return AttentionSpec.of(
        resolved.settings, rotary=layout, scaling=impl.scale, softcap=softcap, sinks=impl.sinks
    )


def _refused(layer: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"SelfExtend can't extend layer {layer}: {reason}")


class _Recorder(nn.Module):
    """Takes the place of an attention layer, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        self.seen.append((query.clone(), key.clone(), value.clone()))
        return torch.zeros_like(query)


class _Unrotated(nn.Module):
    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return query, key


@torch.no_grad()
def verify(model: nn.Module, hidden_size: int, dtype: torch.dtype) -> None:
    """Check every linked layer of a model whose weights are read, and mark it as verified.

    What a layer hands to its attention with its own rotary embedding must be what it hands over
    without any, rotated by the measured layout.

    Raises:
        UnsupportedModelError: it is not; the message names the layer.
    """
    for place in _places(model):
        if getattr(place.attention, _STATE, None) != "linked":
            continue
        parameters = inspect.signature(place.caller.forward).parameters
        if not {"positions", "hidden_states"} <= set(parameters):
            reason = f"{type(place.caller).__name__} takes {', '.join(parameters)}, which is new"
            raise _refused(place.name, reason)
        _verify(place, hidden_size, dtype)
        setattr(place.attention, _STATE, "verified")


def _verify(place: _Place, hidden_size: int, dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(0)
    grouped, layer, spec = place.rotary, place.attention, place.attention.impl.spec
    if layer.impl.sinks is not spec.sinks:
        raise _refused(place.name, "its sinks were replaced while its weights were read")
    device = grouped.stock.cos_sin_cache.device
    end, group = len(grouped.stock.cos_sin_cache), grouped.group_size
    positions = torch.randint(end, (_PROBED,), generator=make).to(device)
    hidden = torch.randn(_PROBED, hidden_size, generator=make).to(device, dtype)
    recorder, caller = _Recorder(), place.caller
    try:
        setattr(caller, place.attention_child, recorder)
        for rotary in (_Unrotated(), grouped.stock, grouped):
            setattr(caller, place.rotary_child, rotary)
            caller(positions=positions, hidden_states=hidden.clone())
    finally:
        setattr(caller, place.attention_child, layer)
        setattr(caller, place.rotary_child, grouped)
    if len(recorder.seen) != 3:
        raise _refused(place.name, "its attention is not called once per forward")
    raw, stock, ours = recorder.seen
    expected = [
        (stock[0], raw[0], positions, layer.num_heads),
        (stock[1], raw[1], positions, layer.num_kv_heads),
        (ours[0], raw[0], None, layer.num_heads),
        (ours[1], raw[1], positions // group, layer.num_kv_heads),
        (ours[2], raw[2], None, layer.num_kv_heads),
    ]
    rounding = 8 * (torch.finfo(dtype).eps + end * torch.finfo(torch.float32).eps)
    for given, unrotated, at, heads in expected:
        wanted = unrotated.view(_PROBED, heads, layer.head_size).transpose(0, 1)[None].double()
        if at is not None:
            wanted = spec.rotary.rotate(wanted, at)
        wanted = wanted[0].transpose(0, 1).flatten(1)
        off = (given.view(wanted.shape).double() - wanted).abs().max()
        if not float(off) <= rounding * float(wanted.abs().max()):
            reason = f"more than a rotation is done to its queries or keys (off by {off:.3g})"
            raise _refused(place.name, reason)


def refuse_unverified(layer: Any) -> None:
    """Refuse a layer that was neither linked and verified nor found to be left alone.

    Raises:
        UnsupportedModelError: the model was built or loaded past the plugin.
    """
    state = getattr(layer, _STATE, None)
    if state not in ("verified", "left alone"):
        raise _refused(
            layer.layer_name,
            "the model was loaded past the plugin, so its attention would be the ordinary one; "
            "use another load_format",
        )
