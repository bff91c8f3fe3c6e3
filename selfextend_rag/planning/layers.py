"""What each layer of a model keeps of the tokens it has seen, read off its configuration.

The configuration is read by attribute names alone, so this needs no model library. The traps:

* ``head_dim`` is stated by some models (Gemma, Qwen3, Mistral Nemo) and is ``hidden_size`` over the
  query heads in others;
* grouped-query models name their key-value heads in several ways; without a name there are as many
  as query heads;
* latent attention (DeepSeek, MiniCPM3) caches one compressed vector and one rotary key, both
  without heads, and expands them again in every forward;
* layer types and sizes may differ from layer to layer, and layers may reuse the keys of others.

Checked against the caches of transformers 5.23; older versions cached latent attention expanded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from selfextend_rag.errors import UnknownMemoryError
from selfextend_rag.planning.states import States, states_of

LayerKind = Literal["growing", "appended", "sliding", "none"]
"""How keys are held: in a buffer with room, appended to exactly, within a window, or not at all."""

_KINDS: dict[str, LayerKind] = {
    "full_attention": "growing",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "hybrid": "appended",
    "hybrid_sliding": "sliding",
    "linear_attention": "none",
    "conv": "none",
    "moe": "none",
    "mlp": "none",
}
_WITH_STATE = ("hybrid", "hybrid_sliding", "linear_attention", "conv")
_MISLEADING = {
    "mimo_v2_flash": "its sliding layers have twice the key-value heads that its configuration says"
}
_TEXT_PARTS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps; sizes are numbers, not bytes.

    Args:
        kind: how keys and values are held.
        key_size: numbers of one token's key in the cache, all heads together.
        value_size: numbers of one token's value.
        window: tokens that a ``"sliding"`` layer sees.
        states: recurrent and convolution states, if it has any.
        extended: SelfExtend applies here and keeps grouped keys beside the cached ones.
        attended_size: numbers of one token's key and value as attention sees them, expanded to
            all query heads.
        query_size: numbers of one token's query, all heads together.
        head_size: numbers of one head of it.
        kept_heads: heads of a key in the cache.
        expanded: keys and values are made anew from what is cached in each forward.
    """

    kind: LayerKind
    key_size: int = 0
    value_size: int = 0
    window: int | None = None
    states: States | None = None
    extended: bool = False
    attended_size: int = 0
    query_size: int = 0
    head_size: int = 0
    kept_heads: int = 1
    expanded: bool = False

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.query_size // self.head_size if self.head_size else 0

    @property
    def even(self) -> bool:
        """Return whether keys and values of a head are of one size, as fused kernels want."""
        return self.attended_size == 2 * self.query_size

    @property
    def size(self) -> int:
        """Return the numbers that one token leaves in the cache."""
        return self.key_size + self.value_size

    @property
    def can_be_rounded(self) -> bool:
        """Return whether its keys and values can be kept in few bits: it keeps all tokens."""
        return self.kind == "growing"


def text_part(config: Any) -> Any:
    """Return the configuration of the text decoder, which may be nested in another."""
    for name in _TEXT_PARTS:
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, dict):
            return text_part(part)
    return config


def layer_shapes(config: Any) -> tuple[LayerShape, ...]:
    """Return what each layer of a model keeps.

    Args:
        config: any object with the attributes of a transformers configuration.

    Raises:
        UnknownMemoryError: the configuration does not say, or has layers of an unknown kind.
    """
    text = text_part(config)
    misleading = _MISLEADING.get(str(getattr(text, "model_type", "")))
    if misleading:
        raise UnknownMemoryError(
            f"the memory of {type(text).__name__} can't be told from it: {misleading}"
        )
    configs = _layer_configs(text)
    kinds = _layer_types(text, configs)
    reused = [mode == "reuse" for mode in getattr(text, "kv_sharing_modes", None) or ()]
    reused += [False] * (len(configs) - len(reused))
    rotary = list(getattr(text, "no_rope_layers", None) or ()) or [1] * len(configs)
    return tuple(
        LayerShape("none") if shared else _layer_shape(layer, kind, bool(turned))
        for layer, kind, shared, turned in zip(configs, kinds, reused, rotary, strict=False)
    )


def _layer_configs(config: Any) -> list[Any]:
    """Return a configuration for each layer; most models have one for all."""
    each = getattr(config, "per_layer_config", None)
    if each is not None and isinstance(each, Iterable) and not isinstance(each, dict):
        return list(each)
    count = first_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if count is None:
        raise UnknownMemoryError(
            f"{type(config).__name__} does not say how many layers the model has (looked for "
            "num_hidden_layers, n_layer, n_layers, num_layers), so its memory is unknown"
        )
    return [config] * count


def _layer_types(config: Any, configs: list[Any]) -> list[str]:
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    inferred = []
    for layer in configs:
        if getattr(layer, "sliding_window", None) is not None:
            inferred.append("sliding_attention")
        elif getattr(layer, "attention_chunk_size", None) is not None:
            inferred.append("chunked_attention")
        else:
            inferred.append("full_attention")
    return inferred


def _layer_shape(config: Any, layer_type: str, rotary: bool) -> LayerShape:
    kind = _KINDS.get(layer_type)
    if kind is None:
        raise UnknownMemoryError(
            f"{type(config).__name__} has layers of type {layer_type!r}, and what they keep is not "
            f"known; known are {', '.join(_KINDS)}"
        )
    states = states_of(config, layer_type) if layer_type in _WITH_STATE else None
    if kind == "none":
        return LayerShape("none", states=states)
    shape = _latent(config) or _heads(config)
    window = None
    if kind == "sliding":
        name = "attention_chunk_size" if layer_type == "chunked_attention" else "sliding_window"
        window = first_number(config, name)
        if window is None:
            raise UnknownMemoryError(
                f"{type(config).__name__} has {layer_type} layers but no {name}, so how many "
                "tokens they keep is unknown"
            )
    return replace(
        shape, kind=kind, window=window, states=states, extended=rotary and kind != "sliding"
    )


def _latent(config: Any) -> LayerShape | None:
    """Return the sizes of latent attention, None for any other."""
    rank, rotary = (first_number(config, n) for n in ("kv_lora_rank", "qk_rope_head_dim"))
    plain, value = (first_number(config, n) for n in ("qk_nope_head_dim", "v_head_dim"))
    heads = first_number(config, "num_attention_heads", "n_head", "n_heads")
    if not (rank and rotary and plain and value and heads):
        return None
    head = plain + rotary
    return LayerShape(
        "growing", rank, rotary, attended_size=heads * (head + value), query_size=heads * head,
        head_size=head, expanded=True,
    )  # fmt: skip


def _heads(config: Any) -> LayerShape:
    heads = first_number(config, "num_attention_heads", "n_head", "n_heads")
    hidden = first_number(config, "hidden_size", "n_embd", "d_model")
    dim = first_number(config, "attention_head_dim", "head_dim", "kv_channels")
    if heads is None or (hidden is None and dim is None):
        raise UnknownMemoryError(
            f"{type(config).__name__} does not say how many heads of which size the model has "
            "(looked for num_attention_heads, head_dim, hidden_size), so its memory is unknown"
        )
    dim = dim or (hidden or 0) // heads
    value = first_number(config, "v_head_dim") or dim
    kept = first_number(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        kept = 1
    return LayerShape(
        "growing", kept * dim, kept * value, attended_size=heads * (dim + value),
        query_size=heads * dim, head_size=dim, kept_heads=kept,
    )  # fmt: skip


def first_number(config: Any, *names: str) -> int | None:
    """Return the first of these attributes that is a positive integer."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
