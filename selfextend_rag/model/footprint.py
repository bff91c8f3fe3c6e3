"""What each layer of a model keeps, measured by one short forward on a copy without weights.

The copy is built on torch's meta device, where tensors have shapes and no memory. Its attention
function only notes the shapes that it is given, and its cache is ours, so what a layer keeps of a
token is read off what it has kept: heads, latent vectors, windows, shared layers and states alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selfextend_rag.attention.blocked import tile_of
from selfextend_rag.cache import FullLayer, SelfExtendCache
from selfextend_rag.cache.quantised import KV_BITS, head_bytes
from selfextend_rag.errors import UnknownMemoryError, in_short
from selfextend_rag.model.extension import attached
from selfextend_rag.model.hooks import Asked, AttentionCall, binding_of
from selfextend_rag.model.verify import FAILURES
from selfextend_rag.planning.encoding import VisionShape
from selfextend_rag.planning.pretraining import first_number
from selfextend_rag.planning.workspace import LayerKind, LayerShape, States, WorkShape

_NAME = "measured_shapes"
_TOKENS = 4
_SMALL_PATCH = 8  # pixels; smaller than patches are


def layer_shapes(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    """Return what each layer of a model keeps; the model, with weights or without, does not run.

    Raises:
        UnknownMemoryError: a copy can't be built or run without weights.
    """
    config = copy.deepcopy(model.config)
    build: Callable[..., PreTrainedModel] = type(model)._from_config
    try:
        with torch.device("meta"):
            # experts are grouped on the meta device in this precision alone
            empty = build(config, dtype=torch.bfloat16).train(mode=False)
        try:
            return _measured(empty)
        except FAILURES:  # what finds ones in tensors without numbers takes several times as long
            with torch.device("meta"), _AllOnes():
                return _measured(empty)
    except FAILURES as error:
        raise UnknownMemoryError(
            f"the memory of {type(config).__name__} can't be measured on a copy without weights: "
            f"{in_short(error)}"
        ) from error


@torch.inference_mode()
def _measured(model: PreTrainedModel) -> tuple[LayerShape, ...]:
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _noted_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    cache = _RecordedCache(model.config)
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    with attached(model, lambda _: _NAME, cache.note):
        model(input_ids=ids, past_key_values=cache)
    for layer in cache.layers:
        if not type(layer).__module__.startswith((CacheLayerMixin.__module__, "selfextend_rag.")):
            raise TypeError(f"its cache has layers of its own, of type {type(layer).__name__}")
    text = model.config.get_text_config(decoder=True)
    rotary = list(getattr(text, "no_rope_layers", None) or ())
    rotary += [1] * (len(cache.layers) - len(rotary))
    return tuple(
        _shape(layer, cache.attended.get(slot), bool(rotary[slot]), text)
        for slot, layer in enumerate(cache.layers)
    )


class _RecordedCache(SelfExtendCache):
    """A cache that knows which of its layers attention is called for."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.attended: dict[int, AttentionCall] = {}  # the first after a layer was filled
        self._filled = -1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self._filled = layer_idx
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def note(self, call: AttentionCall) -> None:
        self.attended.setdefault(self._filled, call)


def _noted_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
) -> tuple[Tensor, None]:
    binding_of(module).call(Asked(module, query, key, value, None, {}))
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1]), None


class _AllOnes(TorchFunctionMode):
    """Where a model looks at the numbers in tensors that have none, it finds ones."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func is Tensor.split:  # by counts of such numbers: all are in the first
                args = (args[0], [len(args[0]), *[0] * (len(args[1]) - 1)], *args[2:])
            found = func(*tree_map(_ones, args), **tree_map(_ones, kwargs or {}))
            return tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, found)


def _ones(x: object) -> object:
    return torch.ones_like(x, device="cpu") if isinstance(x, Tensor) and x.is_meta else x


def _shape(
    layer: object, call: AttentionCall | None, rotary: bool, config: PreTrainedConfig
) -> LayerShape:
    states = _states(layer, config)
    keys: Tensor | None = getattr(layer, "keys", None)
    values: Tensor | None = getattr(layer, "values", None)
    if keys is None or values is None or keys.ndim != 4:
        return LayerShape("none", states=states)
    heads, dim, value_dim = keys.shape[1], keys.shape[3], values.shape[3]
    attended_dims = (dim, value_dim)
    if call is None:  # it calls no registered attention function
        of_config = first_number(config, "num_attention_heads", "n_head", "n_heads")
        query_heads = max(heads, of_config or 1)
    else:
        query_heads = call.query.shape[1]
        attended_dims = (call.key.shape[3], call.value.shape[3])
    window = getattr(layer, "sliding_window", None)
    kind: LayerKind = "growing" if isinstance(layer, FullLayer) else "appended"
    bits = KV_BITS if kind == "growing" else ()
    return LayerShape(
        "sliding" if window else kind,
        heads * dim,
        values.shape[1] * value_dim,
        window,
        states,
        extended=rotary and not window,
        attended_size=query_heads * sum(attended_dims),
        query_size=query_heads * attended_dims[0],
        head_size=attended_dims[0],
        expanded=call is not None and call.key.shape[1::2] != keys.shape[1::2],
        rounded_bytes={x: heads * (head_bytes(dim, x) + head_bytes(value_dim, x)) for x in bits},
    )


def _states(layer: object, config: PreTrainedConfig) -> States | None:
    """Return the states of a layer; convolutions ``[B, C, K]``, recurrent ``[B, H, D, N]``."""
    convolution = _tensors(layer, "conv_states")
    recurrent = _tensors(layer, "recurrent_states")
    if not convolution and not recurrent:
        return None
    pairs = 0
    for state in recurrent:
        heads, dim, size = (*state.shape[1:], 1, 1)[:3]
        # where the decay differs from channel to channel (Kimi), pairs are held for each
        per_channel = hasattr(config, "linear_num_heads")
        pairs += 4 * heads * dim if per_channel else 4 * heads + 2 * size
    return States(
        sum(state.shape[1] for state in convolution),
        sum(state.numel() for state in convolution),
        sum(state.nbytes for state in recurrent),
        pairs,
    )


def _tensors(layer: object, name: str) -> list[Tensor]:
    found = getattr(layer, name, None) or {}
    return [x for x in found.values() if isinstance(x, Tensor)]


def work_shape(
    config: PreTrainedConfig,
    layers: tuple[LayerShape, ...],
    *,
    itemsize: int = 4,
    on_cpu: bool = True,
    last_logits: bool = True,
) -> WorkShape:
    """Return the sizes that the workspace of a model depends on.

    Args:
        itemsize: bytes of a number in the precision it runs in.
        on_cpu: the model runs on a CPU, with a fused kernel for all but soft-capped scores.
        last_logits: the model can be asked for the last token's logits alone.
    """
    text = config.get_text_config(decoder=True)
    softcap = bool(getattr(text, "attn_logit_softcapping", None))
    hidden = first_number(text, "hidden_size", "n_embd", "d_model") or 1
    return WorkShape(
        hidden=hidden,
        feed_forward=_feed_forward(text, hidden),
        vocabulary=first_number(text, "vocab_size") or 1,
        fused=not softcap and getattr(text, "_attn_implementation", None) != "eager",
        fused_extended=on_cpu and not softcap,
        last_logits=last_logits,
        on_cpu=on_cpu,
        tile=max((tile_of(itemsize, layer.head_size) for layer in layers), default=1),
    )


def vision_shape(config: PreTrainedConfig) -> VisionShape | None:
    """Return the sizes that encoding pictures depends on; None of a model of text.

    What a configuration does not say is taken to be as large as towers of that kind have it.
    """
    towers = [
        tower
        for name, tower in vars(config).items()
        if "vision" in name and isinstance(tower, PreTrainedConfig)
    ]
    if not towers:
        return None
    text = config.get_text_config(decoder=True)
    inner = [part for x in towers for part in (x, *vars(x).values())]
    sizes = [_tower(part) for part in inner if isinstance(part, PreTrainedConfig)]
    hidden, feed_forward, layers, heads, patch = zip(*sizes, strict=True)
    between = [
        x
        for x in vars(config).values()
        if isinstance(x, PreTrainedConfig) and x is not text and x not in towers
    ]
    kinds = {getattr(x, "_attn_implementation", None) for x in (config, *towers)}
    return VisionShape(
        hidden=max(hidden),
        feed_forward=max(feed_forward),
        layers=max(layers),
        heads=max(heads),
        patch=min(patch),
        decoder_hidden=max(hidden[0], first_number(text, "hidden_size", "n_embd", "d_model") or 1),
        connector=_connector(between, first_number(text, "intermediate_size") or 0),
        fused="eager" not in kinds,
    )


def _connector(between: Sequence[PreTrainedConfig], feed_forward: int) -> int:
    """Return the most inner numbers of a patch in the parts between tower and decoder.

    They are as wide as the decoder's feed-forward, or, where a few tokens ask all patches (Idefics
    2's perceiver), as all heads together.
    """
    heads = [
        (first_number(x, "resampler_n_heads", "num_attention_heads") or 0)
        * (first_number(x, "resampler_head_dim", "head_dim") or 0)
        for x in between
    ]
    return max((feed_forward, *heads)) if between else 0


def _tower(config: PreTrainedConfig) -> tuple[int, int, int, int, int]:
    hidden = first_number(config, "hidden_size", "embed_dim", "width", "d_model") or 1
    ratio = getattr(config, "mlp_ratio", None) or 4
    inner = first_number(config, "intermediate_size") or int(ratio * hidden)
    patch = getattr(config, "patch_size", None)
    side = min(patch) if isinstance(patch, list | tuple) else patch
    return (
        hidden,
        inner,
        first_number(config, "num_hidden_layers", "depth", "num_layers") or 1,
        first_number(config, "num_attention_heads", "num_heads") or 1,
        side if isinstance(side, int) and side > 0 else _SMALL_PATCH,
    )


def _feed_forward(config: PreTrainedConfig, hidden: int) -> int:
    inner = getattr(config, "intermediate_size", None)
    if isinstance(inner, list | tuple):  # a size for each layer
        inner = max(inner, default=0)
    dense = inner or first_number(config, "n_inner", "ffn_hidden_size", "ffn_dim") or 4 * hidden
    chosen = first_number(
        config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"
    )
    if chosen is None:
        return dense
    expert = first_number(config, "moe_intermediate_size", "expert_ffn_hidden_size") or dense
    shared = first_number(config, "shared_expert_intermediate_size") or expert
    return max(dense, chosen * (2 * expert + 2 * hidden) + shared)
