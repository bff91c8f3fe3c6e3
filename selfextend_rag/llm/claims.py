"""Memory that a model's readings and kept prompts hold, and what it leaves for the next run.

A plan is made before its turn comes. When it has come, and before anything runs, the plan claims
its memory: kept prompts give way, and if that is not enough the run is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakSet

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import bytes_by_device, layer_nbytes
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.errors import MemoryBudgetExceeded
from selfextend_rag.llm.memory import BudgetNow
from selfextend_rag.planning import ContextPlan
from selfextend_rag.planning.budget import MemoryBudget
from selfextend_rag.planning.memory import DeviceEstimate, DeviceMemory
from selfextend_rag.planning.units import in_words

_NOTHING: Mapping[str, int] = {}


class MemoryClaims:
    """What memory there is for one model, beside what it holds.

    Args:
        machine: says what memory there is for the model in all: a limit, or what is free now and
            what its weights hold.
        kept: the store of kept prompts, if there is one; they can be let go of.
        limited: it is a limit, from which what is held has to be taken off.
    """

    def __init__(self, machine: BudgetNow, kept: PrefixStore | None, *, limited: bool) -> None:
        self._machine = machine
        self._limited = limited
        self._kept = kept
        self._readings: WeakSet[SelfExtendCache] = WeakSet()
        self._lock = threading.Lock()

    def hold(self, cache: SelfExtendCache) -> None:
        """Count a reading's cache as held, as long as it lives."""
        with self._lock:
            self._readings.add(cache)

    def budget(self) -> MemoryBudget | None:
        """Return what there is for a plan, if kept prompts give way; None if that is not known."""
        machine = self._machine()
        if machine is None:
            return None
        if not self._limited:  # what is held is not free; what can be let go of can be had
            return _changed(machine, self._kept_bytes(), +1)
        return _changed(machine, self._reading_bytes(), -1)

    def claim(
        self,
        plan: ContextPlan,
        tokens: int,
        cache: SelfExtendCache | None = None,
        *,
        reading: bool = False,
        more: Mapping[str, int] = _NOTHING,
    ) -> None:
        """See to it that there is memory for a run; kept prompts are let go of for it.

        Args:
            plan: of prompt and answer, as many tokens as there will be in the end.
            tokens: of them that are to be run in chunks.
            cache: what they are put in, if it holds something already.
            reading: that is a reading's, which counts as held.
            more: bytes that are needed beside, by device.

        Raises:
            MemoryBudgetExceeded: there is not enough; nothing has run.
        """
        budget = self.budget()
        if budget is None:
            return
        chunk = max(1, min(plan.chunk_size or tokens, tokens))
        own = _NOTHING if cache is None else bytes_by_device(cache)
        grows = max((layer_nbytes(layer) for layer in cache.layers), default=0) if cache else 0
        # a kept prompt that was just taken is counted by nobody but who has measured
        counted = own if reading or not self._limited else _NOTHING
        kept = self._kept_bytes()
        short: dict[str, int] = {}
        for device in budget.estimate(plan, chunk).devices:
            if device.available_bytes is None:
                continue
            name, held = device.name, own.get(device.name, 0)
            planned = device.kv_cache_bytes + device.grouped_keys_bytes
            needed = device.needed_bytes - planned + max(planned, held) + more.get(name, 0)
            needed += grows if planned > held > 0 else 0  # a buffer beside the one it replaces
            there = device.available_bytes + counted.get(name, 0) - kept.get(name, 0)
            if needed > there:
                short[name] = needed - there
        if short and self._kept is not None:
            freed = self._kept.give_way(short)
            short = {
                name: left for name, n in short.items() if (left := n - freed.get(name, 0)) > 0
            }
        if short:
            raise _refusal(plan, budget, next(iter(short.items())))

    def _kept_bytes(self) -> Mapping[str, int]:
        return _NOTHING if self._kept is None else self._kept.bytes_by_device()

    def _reading_bytes(self) -> Mapping[str, int]:
        total: dict[str, int] = {}
        with self._lock:
            readings = list(self._readings)
        for cache in readings:
            for name, size in bytes_by_device(cache).items():
                total[name] = total.get(name, 0) + size
        return total


def _changed(budget: MemoryBudget, sizes: Mapping[str, int], sign: int) -> MemoryBudget:
    """Return a budget with so much more, or less, on each device."""
    devices = tuple(
        DeviceMemory(
            device.name,
            device.total_bytes,
            min(
                device.total_bytes,
                max(0, device.available_bytes + sign * sizes.get(device.name, 0)),
            ),
        )
        for device in budget.devices
    )
    return replace(budget, devices=devices)


def _refusal(
    plan: ContextPlan, budget: MemoryBudget, short: tuple[str, int]
) -> MemoryBudgetExceeded:
    name, missing = short
    estimate = budget.estimate(plan, plan.chunk_size or 1)
    device: DeviceEstimate = next(x for x in estimate.devices if x.name == name)
    return MemoryBudgetExceeded(
        f"{plan.total_tokens} tokens need at most {in_words(device.needed_bytes)} on {name}, and "
        f"beside the readings that are held it lacks {in_words(missing)} of that",
        device=name,
        needed_bytes=device.needed_bytes,
        available_bytes=max(0, device.needed_bytes - missing),
        needed=plan.total_tokens,
        available=0,
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        remedies=(
            "let go of other readings",
            "ask for a shorter answer",
            "take a smaller model or a device with more memory",
        ),
    )
