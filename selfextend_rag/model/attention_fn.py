"""What transformers calls: the attention function and the mask function of an extended model.

Both are registered under a new name per previous implementation ("sdpa", "eager", ...), so that
layers which are left alone continue with exactly what they had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.attention import AttentionSpec, Scoring, attend
from selfextend_rag.attention.bounds import (
    bounds_of,
    host_waits_are_forbidden,
    mask_of,
    refuse_holes,
)
from selfextend_rag.attention.partial import partial_attention
from selfextend_rag.cache import FullLayer, RowsLayer
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.hooks import Asked, AttentionCall, binding_of, is_bounds
from selfextend_rag.model.rows import attend_by_rows

_PREFIX = "self_extend_on_"
_MORE_THAN_SCALING = frozenset(("softcap", "s_aux", "position_bias", "cache"))
# transformers treats names that contain these words specially
_SAFE = {"sdpa": "torch", "flash": "fa", "flex_attention": "flex", "paged|": "", "/": "_"}

AttentionFunction = Callable[[Asked, str], tuple[Tensor, Tensor | None]]
MaskFunction = Callable[..., Tensor | None]
Switched = list[tuple[PreTrainedConfig, str | None]]
"""Configurations, and the attention implementation that each had before."""


def registered(prefix: str, previous: str, attention: AttentionFunction, mask: MaskFunction) -> str:
    """Return the name of functions made for ``previous``, registering them at the first call.

    The mask function is called as transformers does, and with ``previous`` by name.
    """
    name = previous
    for word, other in _SAFE.items():
        name = name.replace(word, other)
    name = prefix + name
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_call, attention, previous))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(mask, previous=previous))
    return name


def _call(
    function: AttentionFunction,
    previous: str,
    /,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    return function(Asked(module, query, key, value, attention_mask, arguments), previous)


def implementation_name(previous: str) -> str:
    """Return the registered name that extends ``previous``."""
    return registered(_PREFIX, previous, attention_forward, mask_for_layers)


def switch(configs: Iterable[PreTrainedConfig], name: Callable[[str], str]) -> Switched:
    """Switch configurations to what ``name`` makes of their implementations; return the latter."""
    before = [(config, config._attn_implementation) for config in configs]
    switch_back([(config, name(previous or "eager")) for config, previous in before])
    return before


def switch_back(before: Switched) -> None:
    """Undo a `switch`: give each configuration its implementation."""
    for config, name in before:
        config._attn_implementation = {"": name}  # of this one, not of those nested in it


@contextmanager
def implementations(model: nn.Module, name: Callable[[str], str]) -> Iterator[None]:
    """Switch all configurations of a model within the block; see `switch`."""
    before = switch(configs(model.modules()), name)
    try:
        yield
    finally:
        switch_back(before)


def configs(modules: Iterable[nn.Module]) -> list[PreTrainedConfig]:
    """Return the distinct configurations that modules hold."""
    found = (getattr(module, "config", None) for module in modules)
    return list({id(x): x for x in found if isinstance(x, PreTrainedConfig)}.values())


def attention_forward(asked: Asked, previous: str) -> tuple[Tensor, Tensor | None]:
    """Attend: SelfExtend where the module is extended, the previous implementation elsewhere.

    Shapes as transformers has them: query ``[B, H, T, D]`` in, output ``[B, T, H, Dv]``.
    """
    call = binding_of(asked.module).call(asked)
    attend_alone = partial(_attend, previous=previous)
    if isinstance(call.layer, RowsLayer):
        return attend_by_rows(call, call.layer, attend_alone)
    return attend_alone(call)


def _attend(call: AttentionCall, *, previous: str) -> tuple[Tensor, Tensor | None]:
    key, value, mask, bounds = call.key, call.value, call.mask, None
    if not isinstance(call.scoring, AttentionSpec):
        return previous_attention(call, previous)
    _refuse_unknown(call)
    if is_bounds(mask):
        bounds, mask = mask[:, 0, 0], None
    if mask is not None:  # a static cache hands over its whole buffer
        mask = mask[:, 0, 0]
        key, value = key[:, :, : mask.shape[1]], value[:, :, : mask.shape[1]]
    layer = call.layer if isinstance(call.layer, FullLayer) else None
    out = attend(
        call.query, key, value, call.scoring, key_mask=mask, bounds=bounds, impl=call.impl,
        grouped_keys=None if layer is None else layer.grouped_keys,
        capacity=0 if layer is None else layer.capacity,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def _refuse_unknown(call: AttentionCall) -> None:
    mask, arguments = call.mask, call.arguments
    if not (mask is None or is_bounds(mask) or _is_padding(mask)):
        raise ValueError(
            f"an extended layer was given a mask of its own, of shape {tuple(mask.shape)}; only "
            "causal attention with 2-D padding masks is extended: packed sequences, prefix or "
            "image masks are not"
        )
    if arguments.get("dropout") and call.module.training:
        raise ValueError("an extended model has no attention dropout; call model.eval()")
    if arguments.get("position_bias") is not None or arguments.get("is_causal") is False:
        raise ValueError("an extended layer was asked for a position bias or bidirectional scores")


def mask_for_layers(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., object] = causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    previous: str,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask for one kind of layers.

    Plain causal layers get the padding alone: bool ``[B, 1, 1, tokens so far]``, or None without
    padding; a mask that a model narrows for itself differs from it in its third dimension. On a
    CUDA device they get the bounds of each row, int32 ``[B, 1, 1, 3]``, made once for all layers:
    then no layer waits for the device, and nothing here does while a graph is made.
    Sliding, chunked and other layers get what the previous implementation would.
    """
    if mask_function is not causal_mask_function or kv_offset != 0:
        return _plain_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset,
            kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask,
            previous=previous, **kwargs,
        )  # fmt: skip
    device = torch.device(kwargs.get("device", "cpu"))
    device = device if attention_mask is None else attention_mask.device
    if _waiting_is_dear(device):
        last = q_offset + q_length
        holes, bounds = _bounds(batch_size, kv_length, last, attention_mask, device)
        if not holes:
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
    rows: int, slots: int, end: int | Tensor, mask: Tensor | None, device: torch.device
) -> tuple[bool, Tensor | None]:
    """Whether a row has holes, else bounds ``[B, 1, 1, 3]``, None where rows fill all slots."""
    if mask is None:
        if not isinstance(end, Tensor) and slots == end:
            return False, None
        ends = torch.zeros(rows, dtype=torch.int32, device=device) + end
        return False, torch.stack([torch.zeros_like(ends), ends, ends], -1).int()[:, None, None]
    seen = _up_to(mask.bool(), slots)
    seen = seen & (torch.arange(slots, device=seen.device) < end)
    bounds, holes = bounds_of(seen, end)
    if host_waits_are_forbidden(seen.device):
        refuse_holes(holes)
        return False, bounds[:, None, None]
    any_holes, full = torch.stack([holes.any(), seen.all()]).tolist()  # waits once for all layers
    return any_holes, None if full else bounds[:, None, None]


def _up_to(mask: Tensor, length: int) -> Tensor:
    """As transformers does: what the mask does not mention is masked."""
    return torch.nn.functional.pad(mask, (0, length - mask.shape[1]))


def previous_attention(asked: Asked, previous: str) -> tuple[Tensor, Tensor | None]:
    """The implementation this layer had before, with the mask it would have been given."""
    query, key, mask = asked.query, asked.key, asked.mask
    length, total = query.shape[2], key.shape[2]
    end: int | Tensor | None = None
    if is_bounds(mask):
        end, mask = mask[0, 0, 0, 2], mask_of(mask[:, 0, 0], total)
    elif _is_padding(mask):  # or the mask of a single query, which hides the same keys
        mask = mask[:, 0, 0]
    if mask is None or mask.ndim == 2:  # a causal layer without rotary
        if end is None:
            end = total if mask is None else mask.shape[1]
        mask = previous_mask(previous)(
            batch_size=len(query), q_length=length, kv_length=total, q_offset=end - length,
            kv_offset=0, mask_function=causal_mask_function, attention_mask=mask,
            dtype=query.dtype, device=query.device,
        )  # fmt: skip
    given = {name: x for name, x in asked.arguments.items() if x is not None}
    return run_previous(Asked(asked.module, query, key, asked.value, mask, given), previous)


def _is_padding(mask: Tensor | None) -> TypeGuard[Tensor]:
    return mask is not None and mask.dtype == torch.bool and mask.shape[1:3] == (1, 1)


def previous_mask(previous: str) -> MaskFunction:
    """Return the mask function of an implementation."""
    function: MaskFunction = ALL_MASK_ATTENTION_FUNCTIONS[previous]
    return function


def run_previous(asked: Asked, previous: str) -> tuple[Tensor, Tensor | None]:
    """Attend by the function that the module would use under ``previous``.

    Raises:
        UnsupportedModelError: it is "eager", and the model's code has none by the usual name.
    """
    if previous == "sdpa" and (out := _lone_query(asked)) is not None:
        return out, None
    module = asked.module
    own = (sys.modules.get(cls.__module__) for cls in type(module).__mro__)
    functions = [getattr(code, "eager_attention_forward", None) for code in own]
    if previous in ALL_ATTENTION_FUNCTIONS:
        functions = [ALL_ATTENTION_FUNCTIONS[previous]]
    function = next(filter(None, functions), None)
    if function is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no eager attention function to continue with"
        )
    tensors = (asked.query, asked.key, asked.value, asked.mask)
    outputs: tuple[Tensor, Tensor | None] = function(module, *tensors, **asked.arguments)
    return outputs


def _lone_query(asked: Asked) -> Tensor | None:
    """Return the attention of one query over all keys it is given; None for any other call.

    On a CPU torch reads the keys again for each query head, and multiplies one row of 16 bits
    slowly; see `partial_attention`, whose result is the same but for the order of sums.
    """
    query, key, value, arguments = asked.query, asked.key, asked.value, asked.arguments
    given = {name for name, x in arguments.items() if x is not None}
    if (
        query.shape[2] > 1
        or query.device.type != "cpu"
        or asked.mask is not None
        or given & _MORE_THAN_SCALING
        or (arguments.get("dropout") and asked.module.training)
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return None
    scaling = arguments.get("scaling")
    scoring = Scoring(scaling=query.shape[-1] ** -0.5 if scaling is None else scaling)
    return partial_attention(query, key, value, scoring)[0].transpose(1, 2).contiguous()


def _plain_mask(*args: Any, previous: str, **kwargs: Any) -> Tensor | None:
    """Return the mask as ever; None in place of one for a lone query on a CPU that hides nothing.

    Such is that of a sliding layer whose cache hands out no more than its window.
    """
    mask = previous_mask(previous)(*args, **kwargs)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape[2] > 1:
        return mask
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


plain_name = partial(registered, "lone_query_on_", attention=run_previous, mask=_plain_mask)
"""Return the registered name under which a plain model attends as it did, see `_lone_query`."""
