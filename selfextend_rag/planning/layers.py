"""What one layer of a model keeps of the tokens it has seen, and what running it takes.

The shapes are measured on a model without weights (``model/footprint.py``) and handed in; here they
become bytes. What a cache holds is exact. What a forward takes besides weights and cache, its
*workspace*, is an upper bound. With T tokens run at once against S tokens in all, one layer after
another, it is the sum of

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
from typing import Literal, NamedTuple

from selfextend_rag.kv_bits import head_bytes
from selfextend_rag.positions import SelfExtend

LayerKind = Literal["growing", "appended", "sliding", "none"]
"""How keys are held: in a buffer with free capacity, appended to exactly, in a window, or not."""

FIRST_CAPACITY = 256
"""Tokens that a growing layer of the cache has capacity for at least."""

_FLOAT32 = 4
_RECURRENCE_CHUNK = 64  # tokens that the chunked forms of a recurrence take at a time
_ROTATED_AT_ONCE = 1 << 20  # bytes of a slice of a rotation, in float32, in and out
_SCORES_AT_ONCE = 1 << 23  # scores that attention without a fused kernel holds at a time
_ROUNDED_AT_ONCE = {True: 1 << 17, False: 1 << 22}  # numbers, on a CPU and elsewhere
_ROUNDING = 24  # bytes for each of them
_SAMPLING = 48  # bytes for each word of the vocabulary: logits, probabilities, sorted, indices
_ALLOCATOR = 1.05  # rounding and what is freed late


class States(NamedTuple):
    """Convolution and recurrent states of one layer, which do not grow with the length.

    But once a reading is asked, convolution states keep every token that comes, so that they can be
    rolled back.

    Args:
        channels: of the convolution states.
        convolution: their numbers.
        recurrent_bytes: of the recurrent states, which have a precision of their own.
        pairs: numbers that the chunked form of the recurrence makes for each pair of tokens
            within a chunk.
    """

    channels: int
    convolution: int
    recurrent_bytes: int
    pairs: int = 0

    @property
    def work(self) -> int:
        """Return the numbers that running one token takes besides the states, at most."""
        return 10 * self.channels + _RECURRENCE_CHUNK * self.pairs

    def nbytes(self, recorded: int, itemsize: int) -> int:
        """Return their bytes.

        Args:
            recorded: tokens that came since a reading ended, and are kept.
            itemsize: bytes of a number in the model's precision.
        """
        return (self.convolution + self.channels * recorded) * itemsize + self.recurrent_bytes


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps; sizes are numbers, not bytes.

    Args:
        kind: how keys and values are held.
        key_size: numbers of one token's key in the cache, all heads together.
        value_size: numbers of one token's value.
        window: tokens that a ``"sliding"`` layer sees.
        states: recurrent and convolution states, if it has any.
        extended: SelfExtend applies here and keeps grouped keys besides the cached ones.
        attended_size: numbers of one token's key and value as attention sees them, expanded to
            all query heads.
        query_size: numbers of one token's query, all heads together.
        head_size: numbers of one head of it.
        kept_heads: heads of a key in the cache.
        expanded: keys and values are made again from what is cached in each forward.
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


@dataclass(frozen=True, slots=True)
class CacheFill:
    """How a cache is filled at some moment.

    Args:
        tokens: in it.
        capacity: tokens it has capacity for at once.
        latest: tokens of the latest forward.
        recorded: tokens that came since a reading ended; sliding layers keep all of them, to be
            rolled back.
        settings: of SelfExtend; None for plain attention.
        kv_bits: that keys and values are kept in; None for the model's precision.
    """

    tokens: int
    capacity: int
    latest: int
    recorded: int = 0
    settings: SelfExtend | None = None
    kv_bits: int | None = None

    @property
    def reaches_groups(self) -> bool:
        """Return whether any key is attended to at a grouped position."""
        settings = self.settings
        return (
            settings is not None
            and settings.group_size > 1
            and self.tokens > settings.neighbor_window
        )


def layer_bytes(layer: LayerShape, fill: CacheFill, itemsize: int) -> tuple[int, int]:
    """Return the bytes of a layer's cache, and of the grouped keys kept with it.

    Args:
        layer: what it keeps.
        fill: of the cache.
        itemsize: bytes of a number in the model's precision.
    """
    latest = max(fill.latest, fill.recorded)
    slots = {
        "growing": max(fill.tokens, fill.capacity, FIRST_CAPACITY),
        "appended": fill.tokens,
        "sliding": min(fill.tokens - latest, (layer.window or 1) - 1) + latest,
        "none": 0,
    }[layer.kind]
    if fill.kv_bits is not None and layer.can_be_rounded:
        return rounded_bytes(layer, fill.kv_bits, slots), 0
    grouped = 0
    if layer.kind == "growing" and layer.extended and not layer.expanded:
        grouped = slots * layer.key_size * itemsize if fill.reaches_groups else 0
    states = layer.states.nbytes(fill.recorded, itemsize) if layer.states else 0
    return slots * layer.size * itemsize + states, grouped


def rounded_bytes(layer: LayerShape, bits: int, slots: int) -> int:
    """Return the bytes of a layer's keys and values for so many tokens, in few bits."""
    heads = layer.kept_heads
    return heads * sum(
        head_bytes(size // heads, bits, slots) for size in (layer.key_size, layer.value_size)
    )


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
        tile: queries of the neighbor band that share one mask.
    """

    hidden: int
    feed_forward: int
    vocabulary: int
    fused: bool = True
    fused_extended: bool = True
    last_logits: bool = True
    on_cpu: bool = True
    tile: int = 32


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
    """Return an upper bound, in bytes, of what a forward allocates besides weights and cache."""
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
    band = 3 * work.tile * (work.tile + window + 16) * run.itemsize
    positions = 4 * 8 * run.total
    tables = (run.total + run.tokens + near) * layer.head_size * 5 * _FLOAT32
    scores = 0
    if not work.fused_extended:
        at_once = min(max(_SCORES_AT_ONCE, heads * run.total), run.tokens * run.total * heads)
        scores = at_once * (run.itemsize * 2 + 5 * _FLOAT32)
        scores += run.total * layer.attended_size * run.itemsize
    return queries + sums + keys + band + positions + tables + scores


def _appended(layer: LayerShape, run: Forward) -> int:
    """Bytes of keys and values that are copied to be appended to: the old and the new."""
    if layer.kind not in ("sliding", "appended"):
        return 0
    return _reach(layer.window, run) * layer.size * run.itemsize


def _restored(layers: tuple[LayerShape, ...], work: WorkShape, run: Forward) -> int:
    """Bytes of rounded keys and values that are restored for attention.

    They live as long as their layer runs; where later layers attend to them too, to the end.
    """
    rounded = [layer.size for layer in layers if layer.can_be_rounded]
    if run.kv_bits is None or not rounded:
        return 0
    shared = any(layer.kind == "none" and layer.states is None for layer in layers)
    made = run.total * (sum(rounded) if shared else max(rounded))
    return made * run.itemsize + min(made, _ROUNDED_AT_ONCE[work.on_cpu]) * _ROUNDING
