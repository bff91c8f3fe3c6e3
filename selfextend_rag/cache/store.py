"""Read prompts kept for those to come: least recently used, within a budget of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from selfextend_rag.cache.cache import SelfExtendCache, bytes_by_device
from selfextend_rag.cache.rewind import can_rewind, copied, rewind, shortest, stop_recording
from selfextend_rag.cache.spill import SpillFolder
from selfextend_rag.positions import SelfExtend

_WORTH_REUSING = 8  # tokens; fewer are run again faster than anything is looked for
_WORTH_LOADING = 64  # tokens that a file has to have beyond what memory has

Blank = Callable[[], SelfExtendCache]
"""Returns a cache that the model has filled with any tokens; needed to read a file."""


@dataclass(eq=False, slots=True)
class _Entry:
    tokens: tuple[int, ...]
    settings: SelfExtend | None
    cache: SelfExtendCache = field(repr=False)
    nbytes: int

    def shared(self, tokens: tuple[int, ...], settings: SelfExtend | None) -> int:
        """Return how many first tokens of a prompt this can serve; 0 for none."""
        if settings != self.settings:
            return 0
        # The last token of a prompt is always run, for its logits.
        common = common_length(self.tokens, tokens[:-1])
        return common if common >= shortest(self.cache) else 0


class PrefixStore:
    """Keys and values of earlier prompts and their answers, by their tokens.

    Who takes a prefix has it alone, out of reach of everybody else and of eviction, and puts it
    back, longer, when done. Safe to use from several threads.

    Args:
        max_bytes: what all kept entries may take together, free room in their buffers included. An
            entry in use is not counted; it is counted again, or dropped, when it is put back.
        spill: where evicted entries go; None forgets them.
        state: returns what the entries belong to besides their settings, such as the weights as
            they are now; when it is another one, all entries in memory are forgotten.

    Raises:
        ValueError: ``max_bytes`` is negative.
    """

    def __init__(
        self,
        max_bytes: int,
        spill: SpillFolder | None = None,
        *,
        state: Callable[[], Hashable] = lambda: None,
    ) -> None:
        if max_bytes < 0:
            raise ValueError(f"prefix_cache_bytes must be 0 or more, got {max_bytes}")
        self.max_bytes = max_bytes
        self.spill = spill
        self._state = state
        self._known: Hashable = None
        self._entries: list[_Entry] = []  # the latest used last
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Return the bytes that the kept entries take."""
        with self._lock:
            return self._sum()

    def __len__(self) -> int:
        return len(self._entries)

    def take(
        self,
        tokens: tuple[int, ...],
        settings: SelfExtend | None,
        *,
        capacity: int,
        blank: Blank,
    ) -> tuple[SelfExtendCache | None, int, Hashable]:
        """Return a cache of the first tokens of a prompt, how many, and the state to put it under.

        The cache is None, and the tokens 0, if none is kept.

        The entry that shares most is taken: all of it, cut back, if most of it is shared, and
        otherwise a copy of the shared part.

        Args:
            tokens: the prompt.
            settings: the settings that it runs under; those of the entry have to be the same.
            capacity: tokens to make room for.
            blank: needed where the entry comes from a file.
        """
        with self._lock:
            state = self._forget_others()
            found = max(
                ((entry.shared(tokens, settings), entry) for entry in self._entries),
                key=lambda pair: pair[0],
                default=None,
            )
            in_memory = found[0] if found else 0
            filed = self._filed(tokens, settings, in_memory + _WORTH_LOADING, blank)
            if filed is not None:
                found = filed
            if found is None or found[0] < _WORTH_REUSING:
                return None, 0, state
            shared, entry = found
            cache = self._handed_out(entry, shared, capacity)
        cache.set_capacity(capacity)
        return cache, shared, state

    def put(
        self,
        tokens: tuple[int, ...],
        settings: SelfExtend | None,
        cache: SelfExtendCache,
        state: Hashable,
    ) -> None:
        """Keep a cache of tokens; the least recently used make room for it.

        What it holds of earlier entries is not kept twice. One too large for the whole budget, even
        without its grouped keys, is not kept, nor is one of another state than the present: the
        weights may change between two tokens of an answer.
        """
        if cache.nbytes > self.max_bytes:
            cache.drop_grouped_keys()
        entry = _Entry(tokens, settings, cache, cache.nbytes)
        with self._lock:
            if self._forget_others() != state:
                return
            covered = [old for old in self._entries if _covers(entry, old)]
            self._entries = [old for old in self._entries if old not in covered]
            evicted = []
            if entry.nbytes > self.max_bytes:
                evicted.append(entry)
            else:
                while self._entries and self._sum() + entry.nbytes > self.max_bytes:
                    evicted.append(self._entries.pop(0))
                self._entries.append(entry)
            self._spill(evicted)

    def bytes_by_device(self) -> dict[str, int]:
        """Return the bytes that the kept entries take on each device."""
        held: dict[str, int] = {}
        with self._lock:
            for entry in self._entries:
                _add(held, bytes_by_device(entry.cache))
        return held

    def give_way(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Let go of entries, the least recently used first, until so many bytes are free.

        Args:
            wanted: bytes by device.

        Returns:
            What was freed, by device.
        """
        freed: dict[str, int] = {}
        with self._lock:
            evicted = []
            while self._entries and any(freed.get(name, 0) < n for name, n in wanted.items()):
                evicted.append(self._entries.pop(0))
                _add(freed, bytes_by_device(evicted[-1].cache))
            self._spill(evicted)
        return freed

    def clear(self) -> None:
        """Forget everything in memory."""
        with self._lock:
            self._entries.clear()

    def flush(self) -> None:
        """Write all entries to the folder, if there is one, for other processes to find."""
        with self._lock:
            self._forget_others()
            self._spill(self._entries)

    def _forget_others(self) -> Hashable:
        """Drop entries that the model as it is now did not make, and return its state."""
        state = self._state()
        if state != self._known:
            self._entries.clear()
        self._known = state
        return state

    def _sum(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def _handed_out(self, entry: _Entry, shared: int, capacity: int) -> SelfExtendCache:
        kept = entry in self._entries
        if kept:
            self._entries.remove(entry)
        if not kept or shared * 2 >= len(entry.tokens) or not can_rewind(entry.cache):
            rewind_to(entry.cache, shared)
            return entry.cache
        self._entries.append(entry)  # used just now
        return copied(entry.cache, shared, capacity)

    def _filed(
        self, tokens: tuple[int, ...], settings: SelfExtend | None, least: int, blank: Blank
    ) -> tuple[int, _Entry] | None:
        if self.spill is None:
            return None
        path = self.spill.find(tokens[:-1], settings, least)
        saved = None if path is None else self.spill.load(path, blank)
        if saved is None:
            return None
        saved.cache.activate_past_recording()
        entry = _Entry(saved.tokens, saved.settings, saved.cache, saved.cache.nbytes)
        shared = entry.shared(tokens, settings)
        return (shared, entry) if shared >= least else None

    def _spill(self, entries: list[_Entry]) -> None:
        if self.spill is not None:
            for entry in entries:
                self.spill.write(entry.tokens, entry.settings, entry.cache)


def _add(held: dict[str, int], more: Mapping[str, int]) -> None:
    for name, size in more.items():
        held[name] = held.get(name, 0) + size


def rewind_to(cache: SelfExtendCache, length: int) -> None:
    """Cut a cache back, and let its sliding layers forget what they can again."""
    if can_rewind(cache):
        rewind(cache, length)
        stop_recording(cache)


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many first tokens two sequences share."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: comparing slices is far faster than comparing one by one
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _covers(new: _Entry, old: _Entry) -> bool:
    """Return whether the new entry can do all that the old one can."""
    length = len(old.tokens)
    return (
        old.settings == new.settings
        and new.tokens[:length] == old.tokens
        and shortest(new.cache) <= shortest(old.cache)
    )
