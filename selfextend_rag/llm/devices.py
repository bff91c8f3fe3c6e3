"""What memory the devices have that a model is on, or may take of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships no types
import torch

from selfextend_rag.planning import DeviceMemory, MemoryBudget, ModelMemory
from selfextend_rag.planning.memory import parse_bytes

MemoryLimit = int | str | Mapping[int | str, int | str]
"""Bytes for the model and its work, as a number or ``"8GiB"``; or for each device, as accelerate
has it: ``{0: "20GiB", "cpu": "60GiB"}``."""


def budget_of(
    memory: ModelMemory, limit: MemoryLimit | None, chunk_size: int | None, *, loaded: bool
) -> MemoryBudget:
    """Return what there is for a model: a limit, or what is free now and its weights hold.

    Raises:
        ValueError: the limit is no number of bytes, or is of a device that the model is not on.
    """
    names = [share.name for share in memory.shares if share.name != "disk"]
    if limit is not None:
        return MemoryBudget(memory, limited_memory(limit, names), chunk_size)
    held = {share.name: share.weights_bytes for share in memory.shares} if loaded else {}
    return MemoryBudget(memory, device_memory(names, held), chunk_size)


def main_memory(root: Path = Path("/")) -> DeviceMemory:
    """Return main memory and what of it is free, within a limit of the control group, if any."""
    found = psutil.virtual_memory()
    total, free = found.total, found.available
    for limit, used in _control_groups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceMemory("cpu", total, min(free, total))


def device_memory(names: Iterable[str], held: Mapping[str, int]) -> tuple[DeviceMemory, ...]:
    """Return what devices have for a model, whose weights are ``held`` there already, by device.

    Devices that can't be asked are left out.
    """
    found = []
    for name in names:
        if name == "cpu":
            memory = main_memory()
            free, total = memory.available_bytes, memory.total_bytes
        elif name.startswith("cuda") and torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info(name)
            # what torch holds and does not use counts as free
            free += torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
        else:
            continue
        found.append(DeviceMemory(name, total, min(total, free + held.get(name, 0))))
    return tuple(found)


def limited_memory(limit: MemoryLimit, names: Iterable[str]) -> tuple[DeviceMemory, ...]:
    """Return devices as a caller limits them; a single limit is for each of them."""
    names = list(names)
    if not isinstance(limit, Mapping):
        limit = dict.fromkeys(names, limit)
    limits = {device_name(key): parse_bytes(value) for key, value in limit.items()}
    unknown = sorted(set(limits) - set(names))
    if unknown and not set(limits) & set(names):
        raise ValueError(
            f"memory_limit names {', '.join(unknown)}, and the model is on {', '.join(names)}"
        )
    return tuple(DeviceMemory(n, limits[n], limits[n]) for n in names if n in limits)


def device_name(place: object) -> str:
    """Return the name of a device as it is given in a device map or a limit."""
    name = str(place)
    if name.isdigit():
        return f"cuda:{name}"
    return "cuda:0" if name == "cuda" else name


def _control_groups(root: Path) -> Iterable[tuple[int, int]]:
    """Yield limit and use of the control groups this process is in, from the innermost out."""
    base = root / "sys/fs/cgroup"
    for marker, top, limit_file, use_file in (
        ("0::", base, "memory.max", "memory.current"),
        (":memory:", base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        group = Path(_own_group(root, marker) or "/")
        for path in (group, *group.parents):
            if found := _limit_and_use(top / path.relative_to("/"), limit_file, use_file):
                yield found


def _own_group(root: Path, marker: str) -> str | None:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    named = (line.partition(marker)[2] for line in lines if marker in line)
    return next((path for path in named if path.startswith("/")), None)


def _limit_and_use(folder: Path, limit_file: str, use_file: str) -> tuple[int, int] | None:
    """Return a group's limit and what it uses that can't be dropped; None without a limit."""
    try:
        limit = (folder / limit_file).read_text().strip()
        used = int((folder / use_file).read_text())
        statistics = (folder / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():  # "max"
        return None
    cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", "0")
    return int(limit), max(0, used - int(cached))
