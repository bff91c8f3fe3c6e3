"""What memory the devices have, and what all models of this process hold and have reserved there.

A plan is made before its run begins. When the model is free for it, and before anything runs, it
reserves its memory: kept prompts are evicted for it, and if that is not enough the run is refused.
There is one book for each device, whichever models and `LongContextLLM`s share it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakSet

import psutil  # type: ignore[import-untyped]  # ships no types
import torch

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import bytes_by_device, layer_nbytes
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.errors import MemoryBudgetExceeded
from selfextend_rag.planning import ContextPlan, DeviceMemory, MemoryBudget
from selfextend_rag.planning.memory import format_bytes, parse_bytes

MemoryLimit = int | str | Mapping[int | str, int | str]
"""Bytes for the model and its work, as a number or ``"8GiB"``; or for each device, as accelerate
has it: ``{0: "20GiB", "cpu": "60GiB"}``."""

BudgetNow = Callable[[], MemoryBudget | None]
"""Looks at the machine and returns what there is now; None if the model's needs are not known."""

Bytes = Mapping[str, int]
"""Bytes by device."""

_NOTHING: Bytes = {}


@dataclass(eq=False, slots=True)
class _Reservation:
    """What a run needs until it ends, its cache included."""

    cache: SelfExtendCache
    needed: dict[str, int] = field(default_factory=dict)

    def missing(self) -> Bytes:
        """Return what has not been allocated yet."""
        has = bytes_by_device(self.cache)
        return {name: max(0, n - has.get(name, 0)) for name, n in self.needed.items()}


_LOCK = threading.RLock()
_LEDGERS: WeakSet[Ledger] = WeakSet()  # of this process; what one reserves, the others see


class Ledger:
    """What memory there is for one `LongContextLLM`, besides what this process holds.

    Without a limit, what is free on a device is shared with all models there: what their runs have
    reserved is not free, and any prompt that is kept there may be evicted. A limit is the model's:
    all that is held for it counts, by whichever `LongContextLLM`.

    Args:
        model: the model, which runs one thing at a time.
        machine: says what memory there is for the model in all: a limit, or what is free now and
            what its weights hold.
        kept: the store of kept prompts, if there is one; they can be evicted.
        limited: it is a limit, from which what is held has to be taken off.
    """

    def __init__(
        self, model: object, machine: BudgetNow, kept: PrefixStore | None, *, limited: bool
    ) -> None:
        self._model = model
        self._machine = machine
        self._limited = limited
        self._kept = kept
        self._readings: WeakSet[SelfExtendCache] = WeakSet()
        self._reserved: list[_Reservation] = []
        with _LOCK:
            _LEDGERS.add(self)

    def hold(self, cache: SelfExtendCache) -> None:
        """Count a reading's cache as held, as long as it lives."""
        with _LOCK:
            self._readings.add(cache)

    def budget(self) -> MemoryBudget | None:
        """Return what there is for a plan, kept prompts evicted; None if that is not known."""
        with _LOCK:
            machine = self._machine()
            if machine is None:
                return None
            if self._limited:
                caches = [cache for ledger in self._of_model() for cache in ledger._readings]
                return _changed(machine, _NOTHING, _sum(map(bytes_by_device, caches)))
            others = set(_LEDGERS) - set(self._of_model())
            missing = _sum(run.missing() for ledger in others for run in ledger._reserved)
            return _changed(machine, self._evictable_bytes(), missing)

    @contextmanager
    def reserving(
        self, plan: ContextPlan, tokens: int, *, reading: bool = False, more: Bytes = _NOTHING
    ) -> Iterator[Callable[[SelfExtendCache], None]]:
        """Give a run a function that reserves its memory, until the block ends.

        The function takes the cache that the run fills; other arguments and errors as `reserve`.
        """
        made: list[_Reservation] = []

        def release() -> None:
            while made:
                self.release(made.pop())

        def reserve(cache: SelfExtendCache) -> None:
            release()  # of what ran before within the block
            made.append(self.reserve(plan, tokens, cache, reading=reading, more=more))

        try:
            yield reserve
        finally:
            release()

    def reserve(
        self,
        plan: ContextPlan,
        tokens: int,
        cache: SelfExtendCache,
        *,
        reading: bool = False,
        more: Bytes = _NOTHING,
    ) -> _Reservation:
        """Reserve the memory of a run, to be released at its end; kept prompts are evicted for it.

        Args:
            plan: of prompt and answer, as many tokens as there will be in the end.
            tokens: of them that are to be run in chunks.
            cache: what they are put in.
            reading: that is a reading's, which counts as held.
            more: bytes that are needed besides, by device.

        Raises:
            MemoryBudgetExceeded: there is not enough; nothing has run.
        """
        with _LOCK:
            reservation = _Reservation(cache)
            budget = self.budget()
            if budget is not None:
                self._make_space(plan, tokens, budget, reservation, reading, more)
            self._reserved.append(reservation)
            return reservation

    def release(self, reservation: _Reservation) -> None:
        """Give back what a run had reserved."""
        with _LOCK:
            self._reserved.remove(reservation)

    def _make_space(
        self,
        plan: ContextPlan,
        tokens: int,
        budget: MemoryBudget,
        reservation: _Reservation,
        reading: bool,
        more: Bytes,
    ) -> None:
        """Evict kept prompts until there is what is needed, or refuse."""
        cache = reservation.cache
        own = bytes_by_device(cache)
        grows = max((layer_nbytes(layer) for layer in cache.layers), default=0)
        # a limit counts readings alone, and what is free is short of any cache in memory
        counted = own if reading or not self._limited else _NOTHING
        kept = self._evictable_bytes()
        short: dict[str, int] = {}
        for device in budget.estimate(plan, max(1, min(plan.chunk_size or tokens, tokens))).devices:
            if device.available_bytes is None:
                continue
            name, held = device.name, own.get(device.name, 0)
            planned = device.kv_cache_bytes + device.grouped_keys_bytes
            needed = device.workspace_bytes + max(planned, held) + more.get(name, 0)
            needed += grows if planned > held > 0 else 0  # a buffer with the one it replaces
            there = device.available_bytes + counted.get(name, 0) - kept.get(name, 0)
            reservation.needed[name] = needed
            if needed + device.weights_bytes > there:
                short[name] = needed + device.weights_bytes - there
        short = self._evict(short)
        if short:
            raise _refusal(plan, budget, next(iter(short.items())))

    def _evict(self, short: dict[str, int]) -> dict[str, int]:
        """Evict kept prompts where bytes are short, our own first; return what is still short."""
        for ledger in self._evictable():
            if ledger._kept is not None and set(short) & set(ledger._kept.bytes_by_device()):
                freed = ledger._kept.evict(short)
                left = {name: missing - freed.get(name, 0) for name, missing in short.items()}
                short = {name: missing for name, missing in left.items() if missing > 0}
        return short

    def _of_model(self) -> list[Ledger]:
        return [ledger for ledger in _LEDGERS if ledger._model is self._model]

    def _evictable(self) -> list[Ledger]:
        """Return the ledgers whose kept prompts may be evicted for this one, itself first."""
        others = self._of_model() if self._limited else _LEDGERS
        return [self, *(ledger for ledger in others if ledger is not self)]

    def _evictable_bytes(self) -> Bytes:
        stores = (ledger._kept for ledger in self._evictable())
        return _sum(store.bytes_by_device() for store in stores if store is not None)


def _sum(many: Iterable[Bytes]) -> Bytes:
    total: dict[str, int] = {}
    for sizes in many:
        for name, size in sizes.items():
            total[name] = total.get(name, 0) + size
    return total


def _changed(budget: MemoryBudget, more: Bytes, less: Bytes) -> MemoryBudget:
    """Return a budget with so much more, and so much less, on each device."""
    devices = []
    for device in budget.devices:
        available = device.available_bytes + more.get(device.name, 0) - less.get(device.name, 0)
        within = min(device.total_bytes, max(0, available))
        devices.append(DeviceMemory(device.name, device.total_bytes, within))
    return replace(budget, devices=tuple(devices))


def _refusal(
    plan: ContextPlan, budget: MemoryBudget, short: tuple[str, int]
) -> MemoryBudgetExceeded:
    name, missing = short
    estimate = budget.estimate(plan, plan.chunk_size or 1)
    device = next(x for x in estimate.devices if x.name == name)
    return MemoryBudgetExceeded(
        f"{plan.total_tokens} tokens need at most {format_bytes(device.needed_bytes)} on {name}, "
        f"and besides the readings that are held it lacks {format_bytes(missing)} of that",
        device=name,
        needed_bytes=device.needed_bytes,
        available_bytes=max(0, device.needed_bytes - missing),
        needed=plan.total_tokens,
        available=0,
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        remedies=(
            "release other readings",
            "ask for a shorter answer",
            "take a smaller model or a device with more memory",
        ),
    )


def main_memory(root: Path = Path("/")) -> DeviceMemory:
    """Return main memory and what of it is free.

    A limit of the control group (a container's, for instance) counts like the machine's own.

    Args:
        root: where the system's files are.
    """
    found = psutil.virtual_memory()
    total, free = found.total, found.available
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
    """Return devices as a caller limits them; a single limit is for each of them.

    Raises:
        ValueError: a limit is no number of bytes, or is of a device that the model is not on.
    """
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
