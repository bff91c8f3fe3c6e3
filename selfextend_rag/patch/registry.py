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

from selfextend_rag.attention import Impl, self_extend_attention
from selfextend_rag.cache import GrowingLayer
from selfextend_rag.errors import UnsupportedModelError
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
        mask: as transformers made it.
        binding: how the layer is extended; None where it is plain.
        arguments: the others, by name, such as ``scaling`` and ``sliding_window``.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | None
    binding: Binding | None
    arguments: dict[str, Any]


def tell_observer(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    binding: Binding | None,
    arguments: dict[str, Any],
) -> None:
    """Tell whoever observes the module's model of a call; see `selfextend_rag.patch.observed`."""
    observer = module.__dict__.get(OBSERVER)
    if observer is not None:
        observer(AttentionCall(module, query, key, mask, binding, arguments))


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
    asked = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, **kwargs}
    tell_observer(module, query, key, attention_mask, binding, asked)
    if binding is None:
        return _previous_attention(
            module, query, key, value, attention_mask, previous=previous, scaling=scaling,
            dropout=dropout, softcap=softcap, s_aux=s_aux, **kwargs,
        )  # fmt: skip
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
    kept = layer if isinstance(layer, GrowingLayer) else None
    if kept is not None:
        kept.belong_to(binding.settings, new_tokens=query.shape[2])
    if attention_mask is not None:  # a static cache hands over its whole buffer
        attention_mask = attention_mask[:, 0, 0]
        end = attention_mask.shape[1]
        key, value = key[:, :, :end], value[:, :, :end]
    out = self_extend_attention(
        query, key, value, rotary=binding.rotary, settings=binding.settings, scaling=scaling,
        key_mask=attention_mask, softcap=softcap, sinks=s_aux, impl=binding.impl,
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
    padding; a mask that a model narrows for itself is told from it by its third dimension.
    Sliding, chunked and other layers get what the previous implementation would.
    """
    if mask_function is not causal_mask_function or kv_offset != 0:
        return _previous_mask(previous)(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
            kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask,
            **kwargs,
        )  # fmt: skip
    end = int(q_offset) + q_length
    if attention_mask is None:
        if kv_length == end:
            return None
        device = kwargs.get("device", "cpu")
        return torch.ones(batch_size, 1, 1, end, dtype=torch.bool, device=device)
    seen = attention_mask[:, :end].bool()
    if seen.shape[1] < end:  # as transformers does: what the mask does not mention is masked
        seen = torch.nn.functional.pad(seen, (0, end - seen.shape[1]))
    return None if kv_length == end and bool(seen.all()) else seen[:, None, None]


def _previous_mask(previous: str) -> Callable[..., Any]:
    return ALL_MASK_ATTENTION_FUNCTIONS[previous]


def _previous_attention(
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
    if _is_padding(attention_mask):  # or the mask of a single query, which hides the same keys
        attention_mask = attention_mask[:, 0, 0]
    if attention_mask is None or attention_mask.ndim == 2:  # a causal layer without rotary
        attention_mask = _causal_mask(query, key, attention_mask, previous)
    kwargs = {name: x for name, x in kwargs.items() if x is not None}
    function = previous_function(module, previous)
    return function(module, query, key, value, attention_mask, **kwargs)


def _is_padding(mask: Tensor | None) -> TypeGuard[Tensor]:
    return mask is not None and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)


def _causal_mask(query: Tensor, key: Tensor, padding: Tensor | None, previous: str) -> Any:
    length, total = query.shape[2], key.shape[2]
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
