"""What runs take: keys and values of each layer, and the *workspace* of a forward; arithmetic only.

The shapes are measured on a model without weights (``model/footprint.py``). What a cache holds is
exact. What a forward takes besides weights and cache, its workspace, is an upper bound. With T
tokens run at once against S tokens in all, one layer after another, it is the sum of

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from selfextend_rag.positions import PositionMap, SelfExtend

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
_BANDS_TILE = 128  # queries that share one mask under other maps than SelfExtend
_ALLOCATOR = 1.05  # rounding and what is freed late


class States(NamedTuple):
    """Convolution and recurrent states of one layer, which do not grow with the length.

    But once a reading is asked, convolution states keep every token that comes, so that they can be
    rolled back.
    """

    channels: int  # of the convolution states
    convolution: int  # their numbers
    recurrent_bytes: int  # of the recurrent states, which have a precision of their own
    pairs: int = 0  # numbers that the chunked recurrence makes for each pair of tokens in a chunk


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps; sizes are numbers of one token, all heads together."""

    kind: LayerKind
    key_size: int = 0  # in the cache
    value_size: int = 0
    window: int | None = None  # tokens that a "sliding" layer sees
    states: States | None = None
    extended: bool = False  # SelfExtend applies here
    attended_size: int = 0  # key and value as attention sees them, for each query head
    query_size: int = 0
    head_size: int = 0  # of one head of the query
    expanded: bool = False  # keys and values are made again from the cached ones in each forward
    rounded_bytes: Mapping[int, int] = field(default_factory=dict)
    """Bytes of a token's key and value in so many bits; empty where they can't be rounded."""

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.query_size // self.head_size if self.head_size else 0

    @property
    def size(self) -> int:
        """Return the numbers that one token leaves in the cache."""
        return self.key_size + self.value_size

    def token_bytes(self, itemsize: int, kv_bits: int | None) -> int:
        """Return the bytes that one token leaves in the cache."""
        return self.rounded_bytes.get(kv_bits or 0, self.size * itemsize)


@dataclass(frozen=True, slots=True)
class WorkShape:
    """Sizes that the workspace depends on, in numbers."""

    hidden: int  # width of the residual stream
    feed_forward: int  # inner numbers of one token in the widest one, experts included
    vocabulary: int
    fused: bool = True  # plain attention is; otherwise it makes all scores at once
    fused_extended: bool = True  # SelfExtend is; otherwise it makes the scores of some queries
    last_logits: bool = True  # the model can be asked for the logits of the last token alone
    on_cpu: bool = True  # all of it runs there
    tile: int = 32  # queries of the neighbor band that share one mask


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward, and how the cache is filled afterwards."""

    tokens: int  # T, run at once
    total: int  # S, in the cache afterwards
    settings: PositionMap | None  # None for plain attention
    itemsize: int  # bytes of a number in the model's precision
    kv_bits: int | None = None  # that keys and values are kept in; None for this precision
    recorded: int = 0  # tokens since a reading ended, which sliding layers keep to be rolled back
    capacity: int = 0  # tokens that the cache has capacity for at once

    @property
    def reaches_groups(self) -> bool:
        """Return whether any key is attended to at a grouped position."""
        settings = self.settings
        return (
            isinstance(settings, SelfExtend)
            and settings.group_size > 1
            and self.total > settings.neighbor_window
        )

    def reach(self, window: int | None) -> int:
        """Return how many keys it sees in a layer."""
        return self.total if window is None else min(self.total, window - 1 + self.tokens)


def layer_bytes(layer: LayerShape, run: Forward) -> tuple[int, int]:
    """Return the bytes of a layer's cache, and of the grouped keys kept with it."""
    latest = max(run.tokens, run.recorded)
    slots = {
        "growing": max(run.total, run.capacity, FIRST_CAPACITY),
        "appended": run.total,
        "sliding": min(run.total - latest, (layer.window or 1) - 1) + latest,
        "none": 0,
    }[layer.kind]
    held = slots * layer.token_bytes(run.itemsize, run.kv_bits)
    if states := layer.states:
        held += (states.convolution + states.channels * run.recorded) * run.itemsize
        held += states.recurrent_bytes
    grouped = layer.kind == "growing" and layer.extended and not layer.expanded
    if grouped and run.reaches_groups and run.kv_bits is None:
        return held, slots * layer.key_size * run.itemsize
    return held, 0


def workspace_bytes(layers: Sequence[LayerShape], work: WorkShape, run: Forward) -> int:
    """Return an upper bound, in bytes, of what a forward allocates besides weights and cache."""
    if not layers:
        return 0
    hidden = run.tokens * work.hidden * (4 * run.itemsize + 3 * _FLOAT32)
    feed_forward = 4 * run.tokens * work.feed_forward * run.itemsize
    attention = max(_attention(layer, work, run) for layer in layers)
    plain = {x.window for x in layers if x.size and not (x.extended and run.settings)}
    # the mask that layers of one kind share: booleans in two steps, floats twice
    seen = sum(map(run.reach, plain)) if run.tokens > 1 else 0
    masks = run.tokens * seen * (3 + run.itemsize + _FLOAT32)
    # keys and values that are copied to be appended to: the old and the new
    copied = [x for x in layers if x.kind in ("sliding", "appended")]
    appended = max((run.reach(x.window) * x.size * run.itemsize for x in copied), default=0)
    rows = 1 if work.last_logits else run.tokens
    logits = rows * work.vocabulary * (_SAMPLING if rows == 1 else 3 * _FLOAT32)
    total = hidden + max(feed_forward, attention) + masks + appended + logits
    return int((total + _restored(layers, work, run)) * _ALLOCATOR) + _ROTATED_AT_ONCE


def _attention(layer: LayerShape, work: WorkShape, run: Forward) -> int:
    made = 0
    if states := layer.states:
        made = run.tokens * (10 * states.channels + _RECURRENCE_CHUNK * states.pairs) * _FLOAT32
    if not layer.size:
        return made
    keys = run.reach(layer.window)
    made += run.tokens * (3 * layer.query_size + 2 * layer.size) * run.itemsize
    if layer.expanded:  # the projection, and keys and values copied out of it
        made += 3 * keys * layer.attended_size * run.itemsize
    if layer.extended and run.settings:
        if isinstance(run.settings, SelfExtend):
            return made + _extended(layer, work, run, run.settings.neighbor_window)
        # all keys are rotated twice at most, and a mask may see them all
        return made + _extended(layer, replace(work, tile=_BANDS_TILE), run, run.total)
    repeated = keys * layer.attended_size * run.itemsize
    scores = 0
    if not work.fused or layer.attended_size != 2 * layer.query_size:  # fused: of one size alone
        scores = run.tokens * keys * layer.heads * (2 * run.itemsize + 2 * _FLOAT32)
    return made + repeated + scores + run.tokens * layer.query_size * run.itemsize


def _extended(layer: LayerShape, work: WorkShape, run: Forward, window: int) -> int:
    """Rotated queries, three partial results and their sums, rotated keys, tables, scores."""
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


def _restored(layers: Sequence[LayerShape], work: WorkShape, run: Forward) -> int:
    """Bytes of rounded keys and values that are restored for attention.

    They live as long as their layer runs; where later layers attend to them too, to the end.
    """
    rounded = [layer.size for layer in layers if run.kv_bits in layer.rounded_bytes]
    if not rounded:
        return 0
    shared = any(layer.kind == "none" and layer.states is None for layer in layers)
    made = run.total * (sum(rounded) if shared else max(rounded))
    return made * run.itemsize + min(made, _ROUNDED_AT_ONCE[work.on_cpu]) * _ROUNDING
