"""The memory that runs share: what each one reserves, of which all models of a process know.

Once the model is free and before anything runs, a run reserves its memory: kept prompts are evicted
for it, and if that is not enough it is refused.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar
from weakref import WeakSet

from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import bytes_by_device, layer_nbytes
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.engine import Reserve
from selfextend_rag.errors import MemoryBudgetExceeded, UnknownMemoryError
from selfextend_rag.llm.devices import MemoryLimit, budget_of
from selfextend_rag.llm.memory import memory_of_model
from selfextend_rag.planning import (
    ContextPlan,
    DeviceMemory,
    MemoryBudget,
    ModelMemory,
)
from selfextend_rag.planning.memory import MemoryEstimate, format_bytes
from selfextend_rag.planning.refusals import no_memory

T = TypeVar("T")

Bytes = Mapping[str, int]
"""Bytes by device."""

_LOCK = threading.RLock()
_LEDGERS: WeakSet[Ledger] = WeakSet()  # of this process; what one reserves, the others see


class Ledger:
    """What memory there is for one `LongContextLLM`, besides what this process holds.

    Without a limit, what is free on a device is shared with all models there: what their runs have
    reserved is not free, and any prompt that is kept there may be evicted. A limit is the model's:
    all that is held for it counts, by whichever `LongContextLLM`, and nothing of other models.

    Args:
        model: the model, which runs one thing at a time.
        kept: the store of kept prompts, if there is one; they can be evicted.
        limit, chunk_size, kv_bits: as of `LongContextLLM`, and so are the errors.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kept: PrefixStore | None = None,
        *,
        limit: MemoryLimit | None = None,
        chunk_size: int | None = None,
        kv_bits: int | None = None,
    ) -> None:
        self._model = model
        self._kept = kept
        self._limit = limit
        self._chunk_size = chunk_size
        self._readings: WeakSet[SelfExtendCache] = WeakSet()
        # the cache of each block's run, and what it needs until it ends, the cache included
        self._reserved: dict[object, tuple[SelfExtendCache, Bytes]] = {}
        self._memory: ModelMemory | None = None
        try:
            self._memory = memory_of_model(model, kv_bits)
        except UnknownMemoryError:
            if limit is not None:
                raise
        self.budget()  # refuses a limit that is out of range
        with _LOCK:
            _LEDGERS.add(self)

    def hold(self, cache: SelfExtendCache) -> None:
        """Count a reading's cache as held, as long as it lives."""
        with _LOCK:
            self._readings.add(cache)

    def budget(self) -> MemoryBudget | None:
        """Return what there is for a plan, kept prompts evicted; None if that is not known."""
        if self._memory is None:
            return None
        with _LOCK:
            there = budget_of(self._memory, self._limit, self._chunk_size, loaded=True)
            if self._limit is not None:
                caches = [cache for ledger in self._of_model() for cache in ledger._readings]
                return _changed(there, {}, _sum(map(bytes_by_device, caches)))
            others = set(_LEDGERS) - set(self._of_model())
            missing = _sum(_missing(*run) for ledger in others for run in ledger._reserved.values())
            return _changed(there, self._evictable_bytes(), missing)

    @contextmanager
    def reserving(
        self, plan: ContextPlan, tokens: int, *, reading: bool = False, more: Bytes | None = None
    ) -> Iterator[Reserve]:
        """Yield a function that reserves the memory of a run in a cache until the block ends.

        It evicts kept prompts where memory is short, and raises MemoryBudgetExceeded if that is
        not enough; nothing has run then.

        Args:
            plan: of prompt and answer, as many tokens as there will be in the end.
            tokens: of them that are to be run in chunks.
            reading: the cache is a reading's, which counts as held.
            more: bytes that are needed besides, by device.
        """
        block = object()  # what ran before within it has ended

        def reserve_once(cache: SelfExtendCache) -> None:
            with _LOCK:
                self._reserved.pop(block, None)
                needed = self._needed(plan, tokens, cache, reading, more or {})
                self._reserved[block] = cache, needed

        try:
            yield lambda cache: with_garbage_collected(lambda: reserve_once(cache))
        finally:
            with _LOCK:
                self._reserved.pop(block, None)

    def _needed(
        self, plan: ContextPlan, tokens: int, cache: SelfExtendCache, reading: bool, more: Bytes
    ) -> Bytes:
        """Return what a run needs; kept prompts are evicted until there is that much."""
        budget = self.budget()
        if budget is None:
            return {}
        own, kept = bytes_by_device(cache), self._evictable_bytes()
        grows = max((layer_nbytes(layer) for layer in cache.layers), default=0)
        # a limit counts readings alone, and what is free is short of any cache in memory
        counted = own if reading or self._limit is None else {}
        all_needed: dict[str, int] = {}
        short: dict[str, int] = {}
        estimate = budget.estimate(plan, max(1, min(plan.chunk_size or tokens, tokens)))
        for device in estimate.devices:
            if device.available_bytes is None:
                continue
            name, held = device.name, own.get(device.name, 0)
            planned = device.kv_cache_bytes + device.grouped_keys_bytes
            needed = device.workspace_bytes + max(planned, held) + more.get(name, 0)
            needed += grows if planned > held > 0 else 0  # a buffer with the one it replaces
            there = device.available_bytes + counted.get(name, 0) - kept.get(name, 0)
            all_needed[name] = needed
            if needed + device.weights_bytes > there:
                short[name] = needed + device.weights_bytes - there
        self._make_space(short, plan, estimate)
        return all_needed

    def _make_space(
        self, short: dict[str, int], plan: ContextPlan, estimate: MemoryEstimate
    ) -> None:
        """Evict kept prompts where bytes are short, our own first, or refuse."""
        for store in self._evictable():
            if set(short) & set(store.bytes_by_device()):
                freed = store.evict(short)
                left = {name: missing - freed.get(name, 0) for name, missing in short.items()}
                short = {name: missing for name, missing in left.items() if missing > 0}
        for name, missing in short.items():
            device = next(x for x in estimate.devices if x.name == name)
            raise no_memory(
                f"{plan.total_tokens} tokens need at most {format_bytes(device.needed_bytes)} on "
                f"{name}, and besides the readings that are held it lacks {format_bytes(missing)} "
                "of that",
                plan,
                replace(device, available_bytes=max(0, device.needed_bytes - missing)),
                (
                    "release other readings",
                    "ask for a shorter answer",
                    "take a smaller model or a device with more memory",
                ),
            )

    def _of_model(self) -> list[Ledger]:
        return [ledger for ledger in _LEDGERS if ledger._model is self._model]

    def _evictable(self) -> list[PrefixStore]:
        """Return the stores whose kept prompts may be evicted for this model, our own first."""
        others = _LEDGERS if self._limit is None else self._of_model()
        ledgers = [self, *(ledger for ledger in others if ledger is not self)]
        return [ledger._kept for ledger in ledgers if ledger._kept is not None]

    def _evictable_bytes(self) -> Bytes:
        return _sum(store.bytes_by_device() for store in self._evictable())


def with_garbage_collected(work: Callable[[], T]) -> T:
    """Return what work returns; where memory refuses it, again without readings nobody has.

    What is in a reference cycle, by the traceback of an error for instance, is held until all
    garbage is collected. That takes tenths of a second, so it is done only before a refusal, and
    without the lock, because anything may be called by what is collected.
    """
    try:
        return work()
    except MemoryBudgetExceeded:
        held = _held()
        if held == 1:  # the ledger that refuses, with nothing read
            raise
        gc.collect()
        if _held() == held:
            raise
    return work()


def _held() -> int:
    """Return how many models' ledgers and readings there are."""
    with _LOCK:
        return len(_LEDGERS) + sum(len(ledger._readings) for ledger in _LEDGERS)


def _missing(cache: SelfExtendCache, needed: Bytes) -> Bytes:
    """Return what a run has reserved and not allocated yet."""
    has = bytes_by_device(cache)
    return {name: max(0, size - has.get(name, 0)) for name, size in needed.items()}


def _sum(many: Iterable[Bytes]) -> Bytes:
    return sum((Counter(sizes) for sizes in many), Counter[str]())


def _changed(budget: MemoryBudget, more: Bytes, less: Bytes) -> MemoryBudget:
    """Return a budget with so much more, and so much less, on each device."""
    devices = []
    for device in budget.devices:
        available = device.available_bytes + more.get(device.name, 0) - less.get(device.name, 0)
        within = min(device.total_bytes, max(0, available))
        devices.append(DeviceMemory(device.name, device.total_bytes, within))
    return replace(budget, devices=tuple(devices))
