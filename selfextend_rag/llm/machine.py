"""What memory this machine has, now: main memory within its limits, and GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from selfextend_rag.planning.memory import DeviceMemory
from selfextend_rag.planning.units import parse_bytes

MemoryLimit = int | str | Mapping[int | str, int | str]
"""Bytes for the model and its work, as a number or ``"8GiB"``; or for each device, as accelerate
has it: ``{0: "20GiB", "cpu": "60GiB"}``."""

_ROOT = Path("/")


def main_memory(root: Path = _ROOT) -> DeviceMemory | None:
    """Return main memory and what of it is free; None if the system does not tell.

    A limit of the control group (a container's, for instance) counts like the machine's own.

    Args:
        root: where the system's files are.
    """
    found = _from_meminfo(root) or _from_sysconf()
    if found is None:
        return None
    total, free = found
    for limit, used in _control_groups(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceMemory("cpu", total, min(free, total))


def gpu_memory(index: int) -> DeviceMemory:
    """Return the memory of a CUDA device; what torch holds and does not use counts as free."""
    free, total = torch.cuda.mem_get_info(index)
    idle = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return DeviceMemory(f"cuda:{index}", total, min(total, free + idle))


def device_memory(names: Iterable[str], held: Mapping[str, int]) -> tuple[DeviceMemory, ...]:
    """Return what devices have for a model, its weights included.

    Args:
        names: of devices; those that can't be asked are left out.
        held: bytes of the model's weights that are there already, by device.
    """
    found = []
    for name in names:
        memory = main_memory() if name == "cpu" else None
        if name.startswith("cuda") and torch.cuda.is_available():
            memory = gpu_memory(int(name.partition(":")[2] or 0))
        if memory is not None:
            available = min(memory.total_bytes, memory.available_bytes + held.get(name, 0))
            found.append(DeviceMemory(name, memory.total_bytes, available))
    return tuple(found)


def limited_memory(limit: MemoryLimit, names: Iterable[str]) -> tuple[DeviceMemory, ...]:
    """Return devices as a caller limits them; a single limit holds for each of them.

    Raises:
        ValueError: a limit is no number of bytes, or is of a device that the model is not on.
    """
    names = list(names)
    if not isinstance(limit, Mapping):
        limit = dict.fromkeys(names, limit)
    limits = {_device_name(key): parse_bytes(value) for key, value in limit.items()}
    unknown = sorted(set(limits) - set(names))
    if unknown and not set(limits) & set(names):
        raise ValueError(
            f"memory_limit names {', '.join(unknown)}, and the model is on {', '.join(names)}"
        )
    return tuple(DeviceMemory(n, limits[n], limits[n]) for n in names if n in limits)


def _device_name(key: int | str) -> str:
    if isinstance(key, int) or key.isdigit():
        return f"cuda:{key}"
    return "cuda:0" if key == "cuda" else key


def _from_meminfo(root: Path) -> tuple[int, int] | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    if "MemTotal" not in values:
        return None
    return values["MemTotal"], values.get("MemAvailable", values["MemTotal"])


def _from_sysconf() -> tuple[int, int] | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in names else pages
    return page * pages, page * free


def _control_groups(root: Path) -> Iterable[tuple[int, int]]:
    """Yield limit and use of the control groups this process is in, from the innermost out."""
    base = root / "sys/fs/cgroup"
    group = Path(_own_group(root, "0::") or "/")
    for path in (group, *group.parents):
        found = _limit_and_use(base / path.relative_to("/"), "memory.max", "memory.current")
        if found:
            yield found
    old = base / "memory" / Path(_own_group(root, ":memory:") or "/").relative_to("/")
    for folder in (old, base / "memory"):
        found = _limit_and_use(folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
        if found:
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
