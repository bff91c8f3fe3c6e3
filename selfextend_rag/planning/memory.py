"""How much memory a model, its cache and its work need, device by device; arithmetic only.

What runs take is in `workspace`, what a machine has is found out in ``llm/devices.py``; both are
handed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfextend_rag.planning.encoding import PictureWork, VisionShape, encoding_bytes
from selfextend_rag.planning.workspace import (
    Forward,
    LayerShape,
    WorkShape,
    layer_bytes,
    workspace_bytes,
)
from selfextend_rag.positions import PositionMap

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS = {
    "": 1, "B": 1,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


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
    vision: VisionShape | None = None  # of models that look at pictures

    def picture_bytes(self, works: Sequence[PictureWork]) -> int:
        """Return what encoding the largest of some pictures takes at most; they are one at a time.

        Whichever device it is on; a CPU also decodes them.
        """
        if self.vision is None:
            return 0
        host = any(share.name == "cpu" for share in self.shares)
        sizes = [encoding_bytes(self.vision, x, self.itemsize, host=host) for x in works]
        return max(sizes, default=0)

    def estimate(
        self,
        prompt_tokens: int,
        later_tokens: int,
        settings: PositionMap | None,
        chunk_size: int,
        devices: Sequence[DeviceMemory] = (),
        picture_bytes: int = 0,
    ) -> MemoryEstimate:
        """Return what reading a prompt in chunks and then running later tokens needs at most.

        ``picture_bytes`` are what encoding one of its pictures takes, counted on each device.
        """
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
                    workspace_bytes(layers, self.work, run) + share.streamed_bytes + picture_bytes,
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
