"""How much memory a model, its cache and its work need, device by device; arithmetic only.

What a machine has is found out elsewhere (``llm/machine.py``) and handed in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfextend_rag.planning.layers import (
    CacheFill,
    Forward,
    LayerShape,
    WorkShape,
    layer_bytes,
    workspace_bytes,
)
from selfextend_rag.positions import SelfExtend

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
        total_bytes: all of it.
        available_bytes: what the model may take in all: its weights, loaded or not, its cache and
            its work.
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
    """What of a model one device has to do with.

    Args:
        name: the device.
        weights_bytes: weights that stay there.
        layers: indexes of the layers that run there, and so have their cache there.
        streamed_bytes: the largest part of the weights that is brought there to run.
        grouped_keys: extended layers keep grouped keys there; the Triton kernels need none.
    """

    name: str
    weights_bytes: int
    layers: tuple[int, ...]
    streamed_bytes: int = 0
    grouped_keys: bool = True


@dataclass(frozen=True, slots=True)
class DeviceEstimate:
    """What is needed on one device, in bytes; a bound that is not exceeded.

    Args:
        name: the device.
        weights_bytes: weights.
        kv_cache_bytes: keys and values, capacity for all tokens of the plan included.
        grouped_keys_bytes: rotated keys that an extended model keeps with them.
        workspace_bytes: what running a chunk takes.
        available_bytes: what the device has for all of that; None where it was not looked at.
    """

    name: str
    weights_bytes: int
    kv_cache_bytes: int
    grouped_keys_bytes: int
    workspace_bytes: int
    available_bytes: int | None = None

    @property
    def needed_bytes(self) -> int:
        """Return all of it together."""
        return (
            self.weights_bytes
            + self.kv_cache_bytes
            + self.grouped_keys_bytes
            + self.workspace_bytes
        )

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
        lines = [_explained(device, self.kv_bits) for device in self.devices]
        if self.unrounded_layers:
            lines.append(
                f"{self.unrounded_layers} layers that keep a window of tokens, or a state besides "
                "them, have their keys and values in full precision."
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
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


def _explained(device: DeviceEstimate, kv_bits: int | None) -> str:
    parts = [
        f"{format_bytes(device.weights_bytes)} of weights",
        f"{format_bytes(device.kv_cache_bytes)} of keys and values"
        + (f" in {kv_bits} bits" if kv_bits else ""),
    ]
    if device.grouped_keys_bytes:
        parts.append(f"{format_bytes(device.grouped_keys_bytes)} of grouped keys")
    parts.append(f"{format_bytes(device.workspace_bytes)} to work in")
    has = ""
    if device.available_bytes is not None:
        has = f" of {format_bytes(device.available_bytes)} available"
    needs = format_bytes(device.needed_bytes)
    return f"Memory on {device.name}: {' + '.join(parts)} = at most {needs}{has}."


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What the memory of a model follows from.

    Args:
        layers: what each layer keeps.
        itemsize: bytes of a number in the model's precision.
        work: sizes that its workspace depends on.
        shares: what each device has to do with it.
        rewinds: a cache that was asked can be rolled back; otherwise every question copies it.
        kv_bits: that keys and values are kept in, by the layers that keep all tokens; None for the
            model's precision.
    """

    layers: tuple[LayerShape, ...]
    itemsize: int
    work: WorkShape
    shares: tuple[DeviceShare, ...]
    rewinds: bool = True
    kv_bits: int | None = None

    def estimate(
        self,
        prompt_tokens: int,
        later_tokens: int,
        settings: SelfExtend | None,
        chunk_size: int,
        devices: Mapping[str, DeviceMemory] | None = None,
    ) -> MemoryEstimate:
        """Return what reading a prompt and then running later tokens needs at most.

        Args:
            prompt_tokens: tokens that are read in chunks.
            later_tokens: tokens that come after them: questions and answers.
            settings: of SelfExtend; None for plain attention.
            chunk_size: tokens to run at once.
            devices: what there is.
        """
        total = prompt_tokens + later_tokens
        at_once = max(1, min(chunk_size, total))
        fill = CacheFill(total, total, at_once, later_tokens, settings, self.kv_bits)
        run = Forward(at_once, total, settings, self.itemsize, self.kv_bits)
        rows = []
        for share in self.shares:
            layers = tuple(self.layers[index] for index in share.layers)
            held = [layer_bytes(layer, fill, self.itemsize) for layer in layers]
            copies = 1 if self.rewinds else 2
            there = (devices or {}).get(share.name)
            rows.append(
                DeviceEstimate(
                    share.name,
                    share.weights_bytes,
                    copies * sum(kv for kv, _ in held),
                    copies * sum(grouped for _, grouped in held) if share.grouped_keys else 0,
                    workspace_bytes(layers, self.work, run) + share.streamed_bytes,
                    None if there is None else there.available_bytes,
                )
            )
        unrounded = sum(bool(x.size) and not x.can_be_rounded for x in self.layers)
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
