"""An upper bound of what one forward needs beside weights and cache: its workspace.

With T tokens run at once against S tokens in all, one layer after another, it is the sum of

* the hidden states and what norms and the residual stream make of them, T of each;
* queries, keys and values, T of each;
* the larger of attention and feed-forward, which do not live at the same time;
* keys and values of one layer in the model's precision, where they are kept in few bits;
* the scores of the vocabulary, of the last token where the model can be asked for it alone.

Attention that is extended needs some tensors of T tokens, and keys of S tokens where a prefill has
no grouped keys to use. Plain attention of transformers, behind cached tokens, also needs a mask of
T x S and keys and values repeated for every query head; so does a sliding layer, with its window
in place of S. Tables of cosines are counted in full. The bound is checked against the allocations
of real forwards by tests, and against the memory of a process by ``benchmarks/planning.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfextend_rag.planning.layers import LayerShape, first_number, text_part
from selfextend_rag.positions import SelfExtend

_FLOAT32 = 4
_ROTATED_AT_ONCE = 1 << 20  # bytes of a slice of a rotation, in float32, in and out
_SCORES_AT_ONCE = 1 << 23  # scores that attention without a fused kernel holds at a time
_ROUNDED_AT_ONCE = {True: 1 << 17, False: 1 << 22}  # numbers, on a CPU and elsewhere
_ROUNDING = 24  # bytes for each of them
_TILE, _WIDE_TILE = 32, 256  # queries of the neighbor band that share one mask
_WIDE_HEAD = 128  # the wide ones are for these heads in 16 bits
_SAMPLING = 48  # bytes for each word of the vocabulary: logits, probabilities, sorted, indices
_ALLOCATOR = 1.05  # rounding and what is freed late


@dataclass(frozen=True, slots=True)
class WorkShape:
    """Sizes that the workspace depends on, in numbers.

    Args:
        hidden: width of the residual stream.
        feed_forward: inner numbers of one token in the widest feed-forward, experts included.
        vocabulary: tokens in it.
        fused: plain attention runs in a fused kernel; otherwise it makes all scores at once.
        fused_extended: SelfExtend does; otherwise it makes the scores of some queries at a time.
        last_logits: the model can be asked for the logits of the last token alone.
        on_cpu: all of it runs on a CPU.
    """

    hidden: int
    feed_forward: int
    vocabulary: int
    fused: bool = True
    fused_extended: bool = True
    last_logits: bool = True
    on_cpu: bool = True


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward to estimate.

    Args:
        tokens: T, run at once.
        total: S, in the cache afterwards.
        settings: of SelfExtend; None for plain attention.
        itemsize: bytes of a number.
        kv_bits: that keys and values are kept in; None for this precision.
    """

    tokens: int
    total: int
    settings: SelfExtend | None
    itemsize: int
    kv_bits: int | None = None


def workspace_bytes(layers: tuple[LayerShape, ...], work: WorkShape, run: Forward) -> int:
    """Return an upper bound, in bytes, of what a forward allocates beside weights and cache."""
    if not layers:
        return 0
    hidden = run.tokens * work.hidden * (4 * run.itemsize + 3 * _FLOAT32)
    feed_forward = 4 * run.tokens * work.feed_forward * run.itemsize
    attention = max(_attention(layer, work, run) for layer in layers)
    masks = sum(_mask(window, run) for window in {_seen(layer) for layer in layers if layer.size})
    appended = max(_appended(layer, run) for layer in layers)
    restored = _restored(layers, work, run)
    rows = 1 if work.last_logits else run.tokens
    logits = rows * work.vocabulary * (_SAMPLING if rows == 1 else 3 * _FLOAT32)
    total = hidden + max(feed_forward, attention) + masks + appended + restored + logits
    return int(total * _ALLOCATOR) + _ROTATED_AT_ONCE


def _seen(layer: LayerShape) -> tuple[int | None, bool]:
    return layer.window, layer.extended


def _is_extended(layer_extended: bool, run: Forward) -> bool:
    return layer_extended and run.settings is not None


def _reach(window: int | None, run: Forward) -> int:
    """Return how many keys a forward sees in a layer."""
    return run.total if window is None else min(run.total, window - 1 + run.tokens)


def _mask(seen: tuple[int | None, bool], run: Forward) -> int:
    """Bytes of the mask that layers of one kind share: booleans in two steps, floats twice."""
    window, extended = seen
    if _is_extended(extended, run) or run.tokens == 1:
        return 0
    return run.tokens * _reach(window, run) * (3 + run.itemsize + _FLOAT32)


def _attention(layer: LayerShape, work: WorkShape, run: Forward) -> int:
    states = run.tokens * layer.states.work * _FLOAT32 if layer.states else 0
    if not layer.size:
        return states
    keys = _reach(layer.window, run)
    made = states + run.tokens * (3 * layer.query_size + 2 * layer.size) * run.itemsize
    if layer.expanded:  # the projection, and keys and values copied out of it
        made += 3 * keys * layer.attended_size * run.itemsize
    if _is_extended(layer.extended, run):
        return made + _extended(layer, work, run)
    repeated = keys * layer.attended_size * run.itemsize
    scores = 0
    if not (work.fused and layer.even):
        scores = run.tokens * keys * layer.heads * (2 * run.itemsize + 2 * _FLOAT32)
    return made + repeated + scores + run.tokens * layer.query_size * run.itemsize


def _extended(layer: LayerShape, work: WorkShape, run: Forward) -> int:
    """Rotated queries, three partial results and their sums, rotated keys, tables, scores."""
    assert run.settings is not None
    window = run.settings.neighbor_window
    near = min(run.total, run.tokens + window + 16)
    heads = layer.heads
    queries = run.tokens * layer.query_size * (5 * run.itemsize + 2 * _FLOAT32)
    sums = 6 * run.tokens * heads * _FLOAT32
    key_size = layer.attended_size if layer.expanded else layer.size
    keys = (run.total + near) * key_size * run.itemsize
    tile = _WIDE_TILE if run.itemsize == 2 and layer.head_size >= _WIDE_HEAD else _TILE
    band = 3 * tile * (tile + window + 16) * run.itemsize
    positions = 4 * 8 * run.total
    tables = (run.total + run.tokens + near) * layer.head_size * 5 * _FLOAT32
    scores = 0
    if not work.fused_extended:
        at_once = min(max(_SCORES_AT_ONCE, heads * run.total), run.tokens * run.total * heads)
        scores = at_once * (run.itemsize * 2 + 5 * _FLOAT32)
        scores += run.total * layer.attended_size * run.itemsize
    return queries + sums + keys + band + positions + tables + scores


def _appended(layer: LayerShape, run: Forward) -> int:
    """Bytes of keys and values that are copied to be appended to: the old beside the new."""
    if layer.kind not in ("sliding", "appended"):
        return 0
    return _reach(layer.window, run) * layer.size * run.itemsize


def _restored(layers: tuple[LayerShape, ...], work: WorkShape, run: Forward) -> int:
    """Bytes of rounded keys and values that are made anew for attention.

    They live as long as their layer runs; where later layers attend to them too, to the end.
    """
    rounded = [layer.size for layer in layers if layer.can_be_rounded]
    if run.kv_bits is None or not rounded:
        return 0
    shared = any(layer.kind == "none" and layer.states is None for layer in layers)
    made = run.total * (sum(rounded) if shared else max(rounded))
    return made * run.itemsize + min(made, _ROUNDED_AT_ONCE[work.on_cpu]) * _ROUNDING


def work_shape(config: Any, *, on_cpu: bool = True, last_logits: bool = True) -> WorkShape:
    """Return the sizes that the workspace depends on, from a configuration.

    Args:
        config: any object with the attributes of a transformers configuration.
        on_cpu: whether the model runs on a CPU, where SelfExtend has a fused kernel for all scores
            but soft-capped ones.
        last_logits: whether the model can be asked for the last token's logits alone.
    """
    text = text_part(config)
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
    )


def _feed_forward(config: Any, hidden: int) -> int:
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
