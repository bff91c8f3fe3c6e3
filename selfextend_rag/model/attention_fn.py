"""What transformers calls: the attention function and the mask function of an extended model.

Both are registered under a new name per previous implementation ("sdpa", "eager", ...), so that
layers which are left alone go on with exactly what they had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.attention import AttentionSpec, Impl, Scoring, attend
from selfextend_rag.attention.bounds import (
    bounds_of,
    host_waits_are_forbidden,
    mask_of,
    refuse_holes,
)
from selfextend_rag.cache import FullLayer, RowsLayer
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.rows import attend_by_rows
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

BINDING = "_self_extend_binding"
OBSERVER = "_self_extend_observer"
_PREFIX = "self_extend_on_"
# transformers treats names that contain these words specially
_SPELLED = {"sdpa": "torch", "flash": "fa", "flex_attention": "flex", "paged|": "", "/": "_"}


@dataclass(frozen=True)
class Binding:
    """How one attention module is extended; kept on the module."""

    rotary: RotaryLayout
    settings: SelfExtend
    impl: Impl


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """What an attention function was asked, for whoever observes a model.

    Args:
        module: the attention module.
        query: ``[B, H, T, D]``; not rotated in an extended layer.
        key: ``[B, Hkv, S, D]``, all that the layer sees; rotated as the query is.
        mask: as transformers made it; that of an extended layer is its padding, bool.
        binding: how the layer is extended; None where it is plain.
        arguments: the others, by name, such as ``scaling`` and ``sliding_window``.
        layer: the cache layer that handed the keys over, where it is one of ours that keeps all of
            them. Of several rows it is their `RowsLayer`, and ``key`` is the newest of each.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | None
    binding: Binding | None
    arguments: dict[str, Any]
    layer: FullLayer | RowsLayer | None = None

    @property
    def scoring(self) -> Scoring:
        """How the layer scores a key; of an extended layer an `AttentionSpec`."""
        return scoring_of(self.query, self.arguments, self.binding)


def scoring_of(query: Tensor, arguments: dict[str, Any], binding: Binding | None) -> Scoring:
    """Return how a layer scores a key, from what transformers passes to attention functions."""
    scaling = arguments.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap, sinks = arguments.get("softcap"), arguments.get("s_aux")
    if binding is None:
        return Scoring(scaling=scaling, softcap=softcap, sinks=sinks)
    return AttentionSpec(
        rotary=binding.rotary, bands=binding.settings.bands,
        scaling=scaling, softcap=softcap, sinks=sinks,
    )  # fmt: skip


def tell_observer(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    binding: Binding | None,
    arguments: dict[str, Any],
) -> None:
    """Tell whoever observes the module's model of a call; see `selfextend_rag.model.observed`."""
    observer = module.__dict__.get(OBSERVER)
    if observer is not None:
        if is_bounds(mask):  # as a mask of the keys, as elsewhere
            mask = mask_of(mask[:, 0, 0], key.shape[2])[:, None, None]
        layer = getattr(key, "rows", None) or getattr(key, "cache_layer", None)
        observer(AttentionCall(module, query, key, mask, binding, arguments, layer))


def spelled(implementation: str) -> str:
    """Return the name of an attention implementation without what transformers treats specially."""
    for word, other in _SPELLED.items():
        implementation = implementation.replace(word, other)
    return implementation


def implementation_name(previous: str) -> str:
    """Return the registered name that extends ``previous``, registering it at the first call."""
    name = _PREFIX + spelled(previous)
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(attention_forward, previous=previous))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(mask_for_layers, previous=previous))
    return name


def is_ours(name: str | None) -> bool:
    """Return whether an attention implementation's name is one of those registered here."""
    return name is not None and name.startswith(_PREFIX)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    previous: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend: SelfExtend where the module has a binding, the previous implementation elsewhere.

    Shapes as transformers has them: query ``[B, H, T, D]`` in, output ``[B, T, H, Dv]``.
    """
    binding: Binding | None = getattr(module, BINDING, None)
    rows = getattr(key, "rows", None)
    if isinstance(rows, RowsLayer):
        asked = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, **kwargs}
        tell_observer(module, query, key, None, binding, asked)
        one_row = partial(attention_forward, previous=previous, dropout=dropout)
        scoring = scoring_of(query, asked, binding)
        return attend_by_rows(one_row, module, query, rows, attention_mask, asked, binding, scoring)
    asked = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, **kwargs}
    tell_observer(module, query, key, attention_mask, binding, asked)
    if binding is None:
        return previous_attention(
            module, query, key, value, attention_mask, previous=previous, scaling=scaling,
            dropout=dropout, softcap=softcap, s_aux=s_aux, **kwargs,
        )  # fmt: skip
    bounds = None
    if is_bounds(attention_mask):
        bounds, attention_mask = attention_mask[:, 0, 0], None
    if attention_mask is not None and not _is_padding(attention_mask):
        raise ValueError(
            "an extended layer was given a mask of its own, of shape "
            f"{tuple(attention_mask.shape)}; only causal attention with 2-D padding masks is "
            "extended: packed sequences, prefix or image masks are not"
        )
    if dropout and module.training:
        raise ValueError("an extended model has no attention dropout; call model.eval()")
    if kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise ValueError("an extended layer was asked for a position bias or bidirectional scores")
    layer = getattr(key, "cache_layer", None)
    kept = layer if isinstance(layer, FullLayer) else None
    if kept is not None:
        kept.belong_to(binding.settings, new_tokens=query.shape[2])
    if attention_mask is not None:  # a static cache hands over its whole buffer
        attention_mask = attention_mask[:, 0, 0]
        end = attention_mask.shape[1]
        key, value = key[:, :, :end], value[:, :, :end]
    spec = scoring_of(query, asked, binding)
    assert isinstance(spec, AttentionSpec)
    out = attend(
        query, key, value, spec, key_mask=attention_mask, bounds=bounds, impl=binding.impl,
        grouped_keys=None if kept is None else kept.grouped_keys,
        capacity=0 if kept is None else kept.capacity,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def mask_for_layers(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    previous: str,
    **kwargs: Any,
) -> Any:
    """Return the mask for one kind of layers.

    Plain causal layers get the padding alone: bool ``[B, 1, 1, tokens so far]``, or None without
    padding; a mask that a model narrows for itself is told from it by its third dimension. On a
    CUDA device they get the bounds of each row, int32 ``[B, 1, 1, 3]``, made once for all layers:
    then no layer waits for the device, and nothing here does while a graph is made.
    Sliding, chunked and other layers get what the previous implementation would.
    """
    if mask_function is not causal_mask_function or kv_offset != 0:
        return _previous_mask(previous)(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
            kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask,
            **kwargs,
        )  # fmt: skip
    device = attention_mask.device if attention_mask is not None else kwargs.get("device", "cpu")
    if _waiting_is_dear(torch.device(device)):
        bounds = _bounds(batch_size, q_length, kv_length, q_offset, attention_mask, device)
        if bounds is None or is_bounds(bounds):
            return bounds
    end = int(q_offset) + q_length
    if attention_mask is None:
        if kv_length == end:
            return None
        return torch.ones(batch_size, 1, 1, end, dtype=torch.bool, device=device)
    seen = _up_to(attention_mask.bool(), end)
    return None if kv_length == end and bool(seen.all()) else seen[:, None, None]


def _waiting_is_dear(device: torch.device) -> bool:
    return device.type == "cuda"


def _bounds(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    attention_mask: Tensor | None,
    device: Any,
) -> Any:
    """Bounds ``[B, 1, 1, 3]``, None where rows fill all slots, False where a row has holes."""
    end = q_offset + q_length
    if attention_mask is None:
        if not isinstance(end, Tensor) and kv_length == end:
            return None
        ends = torch.zeros(batch_size, dtype=torch.int32, device=device) + end
        return torch.stack([torch.zeros_like(ends), ends, ends], -1).int()[:, None, None]
    seen = _up_to(attention_mask.bool(), kv_length)
    seen = seen & (torch.arange(kv_length, device=seen.device) < end)
    bounds, holes = bounds_of(seen, end)
    if host_waits_are_forbidden(seen.device):
        refuse_holes(holes)
        return bounds[:, None, None]
    any_holes, full = torch.stack([holes.any(), seen.all()]).tolist()  # waits once for all layers
    if any_holes:
        return False
    return None if full else bounds[:, None, None]


def _up_to(mask: Tensor, length: int) -> Tensor:
    """As transformers does: what the mask does not mention is masked."""
    mask = mask[:, :length]
    if mask.shape[1] < length:
        mask = torch.nn.functional.pad(mask, (0, length - mask.shape[1]))
    return mask


def _previous_mask(previous: str) -> Callable[..., Any]:
    return ALL_MASK_ATTENTION_FUNCTIONS[previous]


def previous_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    previous: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The implementation this layer had before, with the mask it would have been given."""
    end: int | Tensor | None = None
    if is_bounds(attention_mask):
        end = attention_mask[0, 0, 0, 2]
        attention_mask = mask_of(attention_mask[:, 0, 0], key.shape[2])
    elif _is_padding(attention_mask):  # or the mask of a single query, which hides the same keys
        attention_mask = attention_mask[:, 0, 0]
    if attention_mask is None or attention_mask.ndim == 2:  # a causal layer without rotary
        attention_mask = _causal_mask(query, key, attention_mask, end, previous)
    kwargs = {name: x for name, x in kwargs.items() if x is not None}
    function = previous_function(module, previous)
    return function(module, query, key, value, attention_mask, **kwargs)


def _is_padding(mask: Tensor | None) -> TypeGuard[Tensor]:
    return mask is not None and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)


def is_bounds(mask: Any) -> TypeGuard[Tensor]:
    """Return whether a mask is the bounds of each row, ``[B, 1, 1, 3]``."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.shape[1:] == (1, 1, 3)


def _causal_mask(
    query: Tensor, key: Tensor, padding: Tensor | None, end: int | Tensor | None, previous: str
) -> Any:
    length, total = query.shape[2], key.shape[2]
    if end is None:
        end = total if padding is None else padding.shape[1]
    return _previous_mask(previous)(
        batch_size=len(query), q_length=length, kv_length=total, q_offset=end - length,
        kv_offset=0, mask_function=causal_mask_function, attention_mask=padding,
        dtype=query.dtype, device=query.device,
    )  # fmt: skip


def previous_function(module: nn.Module, previous: str) -> Callable[..., Any]:
    """Return the attention function that ``module`` would use under ``previous``.

    Raises:
        UnsupportedModelError: it is "eager", and the model's code has none by the usual name.
    """
    if previous in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[previous]
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(module).__name__} has no eager attention function to go on with"
    )
