"""How much memory a model, its cache and its work need, device by device; arithmetic only.

The shapes are measured on a model without weights (``model/footprint.py``), what a machine has is
found out in ``llm/ledger.py``; both are handed in. What a cache holds is exact. What a forward
takes besides weights and cache, its *workspace*, is an upper bound. With T tokens run at once
against S tokens in all, one layer after another, it is the sum of

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

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

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

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS = {
    "": 1, "B": 1,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What one device has.

    Args:
        name: such as ``"cpu"`` or ``"cuda:0"``.
        available_bytes: for the model in all: weights, loaded or not, cache and work.
    """

    name: str
    total_bytes: int
    available_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.available_bytes <= self.total_bytes:
            raise ValueError(
                f"available_bytes of {self.name} must be from 0 to its total of "
                f"{self.total_bytes}, got {self.available_bytes}"
            )


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What of a model one device has to do with."""

    name: str
    weights_bytes: int  # of those that stay there
    layers: tuple[int, ...]  # indexes of those that run there, and so have their cache there
    streamed_bytes: int = 0  # the largest part of the weights that is brought there to run
    grouped_keys: bool = True  # are kept there; the Triton kernels need none


@dataclass(frozen=True, slots=True)
class DeviceEstimate:
    """What is needed on one device, in bytes; a bound that is not exceeded."""

    name: str
    weights_bytes: int
    kv_cache_bytes: int  # capacity for all tokens of the plan included
    grouped_keys_bytes: int  # rotated keys that an extended model keeps with them
    workspace_bytes: int  # what running a chunk takes
    available_bytes: int | None = None  # for all of that; None where it was not looked at

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the cache: keys and values, and grouped keys."""
        return self.kv_cache_bytes + self.grouped_keys_bytes

    @property
    def needed_bytes(self) -> int:
        """Return all of it together."""
        return self.weights_bytes + self.cache_bytes + self.workspace_bytes

    @property
    def fits(self) -> bool:
        """Return whether the device has that much; True where it was not looked at."""
        return self.available_bytes is None or self.needed_bytes <= self.available_bytes


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a plan needs in memory, device by device.

    Args:
        devices: what is needed on each.
        kv_bits: that keys and values are kept in; None for the model's precision.
        unrounded_layers: layers that keep keys and values in the model's precision all the same.
    """

    devices: tuple[DeviceEstimate, ...]
    kv_bits: int | None = None
    unrounded_layers: int = 0

    @property
    def weights_bytes(self) -> int:
        """Return the bytes of the weights on all devices."""
        return sum(device.weights_bytes for device in self.devices)

    @property
    def kv_cache_bytes(self) -> int:
        """Return the bytes of keys and values on all devices."""
        return sum(device.kv_cache_bytes for device in self.devices)

    @property
    def grouped_keys_bytes(self) -> int:
        """Return the bytes of grouped keys on all devices."""
        return sum(device.grouped_keys_bytes for device in self.devices)

    @property
    def workspace_bytes(self) -> int:
        """Return the bytes that running a chunk takes on all devices."""
        return sum(device.workspace_bytes for device in self.devices)

    @property
    def needed_bytes(self) -> int:
        """Return all of it together."""
        return sum(device.needed_bytes for device in self.devices)

    @property
    def fits(self) -> bool:
        """Return whether every device has what is needed of it."""
        return all(device.fits for device in self.devices)

    def explain(self) -> str:
        """Return one line a device, in plain words, and one on what is not rounded."""
        lines = []
        for device in self.devices:
            bits = f" in {self.kv_bits} bits" if self.kv_bits else ""
            parts = {
                "weights": device.weights_bytes,
                f"keys and values{bits}": device.kv_cache_bytes,
                "grouped keys": device.grouped_keys_bytes,
            }
            added = [f"{format_bytes(n)} of {x}" for x, n in parts.items() if n or x[0] != "g"]
            added.append(f"{format_bytes(device.workspace_bytes)} to work in")
            needs, has = f"at most {format_bytes(device.needed_bytes)}", ""
            if device.available_bytes is not None:
                has = f" of {format_bytes(device.available_bytes)} available"
            lines.append(f"Memory on {device.name}: {' + '.join(added)} = {needs}{has}.")
        if self.unrounded_layers:
            lines.append(
                f"{self.unrounded_layers} layers that keep a window of tokens, or a state besides "
                "them, have their keys and values in full precision."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON values."""
        devices = [{**asdict(x), "needed_bytes": x.needed_bytes} for x in self.devices]
        return {
            "devices": devices,
            "kv_bits": self.kv_bits,
            "unrounded_layers": self.unrounded_layers,
            "needed_bytes": self.needed_bytes,
            "fits": self.fits,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MemoryEstimate:
        """Return the estimate that ``to_dict`` wrote."""
        names = DeviceEstimate.__dataclass_fields__
        devices = tuple(DeviceEstimate(**{n: row[n] for n in names}) for row in values["devices"])
        return cls(devices, values["kv_bits"], values["unrounded_layers"])


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What the memory of a model follows from."""

    layers: tuple[LayerShape, ...]
    itemsize: int  # bytes of a number in the model's precision
    work: WorkShape
    shares: tuple[DeviceShare, ...]
    kv_bits: int | None = None  # of layers that keep all tokens; None for the model's precision

    def estimate(
        self,
        prompt_tokens: int,
        later_tokens: int,
        settings: PositionMap | None,
        chunk_size: int,
        devices: Sequence[DeviceMemory] = (),
    ) -> MemoryEstimate:
        """Return what reading a prompt in chunks and then running later tokens needs at most."""
        total = prompt_tokens + later_tokens
        tokens = max(1, min(chunk_size, total))
        run = Forward(tokens, total, settings, self.itemsize, self.kv_bits, later_tokens)
        # a cache with states can't be rolled back: every question copies it
        copies = 2 if any(layer.states for layer in self.layers) else 1
        available = {device.name: device.available_bytes for device in devices}
        rows = []
        for share in self.shares:
            layers = [self.layers[index] for index in share.layers]
            held = [layer_bytes(layer, run) for layer in layers]
            rows.append(
                DeviceEstimate(
                    share.name,
                    share.weights_bytes,
                    copies * sum(kv for kv, _ in held),
                    copies * sum(grouped for _, grouped in held) if share.grouped_keys else 0,
                    workspace_bytes(layers, self.work, run) + share.streamed_bytes,
                    available.get(share.name),
                )
            )
        unrounded = sum(bool(x.size) and not x.rounded_bytes for x in self.layers)
        return MemoryEstimate(tuple(rows), self.kv_bits, unrounded if self.kv_bits else 0)


def format_bytes(count: int) -> str:
    """Return a number of bytes as people write it: ``3.2 GiB``."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def parse_bytes(value: int | str) -> int:
    """Return a number of bytes, given as such or as ``"12GiB"`` or ``"800 MB"``.

    Raises:
        ValueError: it is neither, or not positive.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    factor = _FACTORS.get(found[2].upper()) if found else None
    if found is None or factor is None or float(found[1]) <= 0 or isinstance(value, bool):
        raise ValueError(
            f'memory must be a positive number of bytes, such as 8000000000 or "8GiB", '
            f"got {value!r}"
        )
    return int(float(found[1]) * factor)
