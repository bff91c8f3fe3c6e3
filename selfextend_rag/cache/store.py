"""Read prompts kept for those to come: least recently used, within a budget of bytes.

What memory has no space for can go to a folder, which several processes may share.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from selfextend_rag.cache import files, persist
from selfextend_rag.cache.cache import (
    SelfExtendCache,
    bytes_by_device,
    can_rewind,
    copied,
    has_state,
    rewind,
    shortest,
    start_recording,
)
from selfextend_rag.cache.identity import digest
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.positions import PositionMap

_WORTH_REUSING = 8  # tokens; fewer are run again faster than anything is looked for
_WORTH_LOADING = 64  # tokens that a file has to have beyond what memory has
_SUFFIX = ".prefix"

Blank = Callable[[], SelfExtendCache]
"""Returns a cache that the model has filled with any tokens; needed to read a file."""

_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


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


class SpillFolder:
    """Files of prefixes, the longest unused removed when they grow too many.

    A file that is damaged or can't be written is reported in the log and done without: what it
    would have saved is then run again.

    Args:
        folder: where; made if it is not there.
        max_bytes: what all files of prefixes in it may take together, of whichever model.
        fingerprint: returns what the prefixes belong to; called when first needed.

    Raises:
        ReadingFileError: the folder can't be made.
    """

    def __init__(
        self, folder: Path, max_bytes: int, fingerprint: Callable[[], Mapping[str, str]]
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"prefix_cache_dir_bytes must be positive, got {max_bytes}")
        self.folder = folder
        self.max_bytes = max_bytes
        self._fingerprint = fingerprint
        self._known: dict[Path, tuple[object, tuple[int, ...], PositionMap | None]] = {}
        files.make_folder(folder)

    def write(
        self, tokens: tuple[int, ...], settings: PositionMap | None, cache: SelfExtendCache
    ) -> None:
        """Write a prefix, unless it is there already; states of recurrent layers are left out."""
        if has_state(cache):
            return
        name = f"{self._model()}-{digest(f'{settings} {tokens}')}{_SUFFIX}"
        path = self.folder / name
        try:
            if path.exists():
                os.utime(path)
                return
            found = persist.snapshot(cache)
            if sum(x.nbytes for x in found.tensors.values()) <= self.max_bytes:
                persist.save(path, found, tokens, settings, fingerprint=self._fingerprint())
                files.remove_oldest(self.folder, _SUFFIX, self.max_bytes)
        except (ReadingFileError, CacheMismatchError, OSError) as error:
            _log.warning("a prefix was not kept in %s: %s", self.folder, error)

    def load(
        self, tokens: tuple[int, ...], settings: PositionMap | None, least: int, blank: Blank
    ) -> persist.Saved | None:
        """Return the prefix that shares most first tokens with these, if at least so many."""
        best, most = None, least - 1
        for path in self.folder.glob(f"{self._model()}-*{_SUFFIX}"):
            known = self._usable(path, self._look)
            if known is not None and known[1] == settings:
                shared = common_length(known[0], tokens)
                best, most = (path, shared) if shared > most else (best, most)
        if best is None:
            return None
        fingerprint = self._fingerprint()
        saved = self._usable(
            best, lambda path: persist.load(path, lambda _: blank(), fingerprint=fingerprint)
        )
        if saved is not None:
            with suppress(FileNotFoundError):  # another process may have removed it by now
                os.utime(best)
        return saved

    def _look(self, path: Path) -> tuple[tuple[int, ...], PositionMap | None]:
        """Return a file's tokens and settings, read when the file is new or has changed."""
        state = path.stat()
        stamp = state.st_ino, state.st_size
        if path not in self._known or self._known[path][0] != stamp:
            self._known[path] = stamp, *persist.tokens_in(path, self._fingerprint())
        return self._known[path][1:]

    def _usable(self, path: Path, read: Callable[[Path], _Read]) -> _Read | None:
        """Return what is read from a file; None, and no damaged file any more, if it can't be."""
        try:
            return read(path)
        except (ReadingFileError, CacheMismatchError, FileNotFoundError) as error:
            self._known.pop(path, None)
            if path.exists():  # if not, another process removed it just now, as it may
                _log.warning("a kept prefix can't be used: %s", error)
                if isinstance(error, CorruptReadingError):
                    path.unlink(missing_ok=True)
            return None

    def _model(self) -> str:
        return digest(repr(sorted(self._fingerprint().items())))[:16]


@dataclass(eq=False, slots=True)
class _Entry:
    tokens: tuple[int, ...]
    settings: PositionMap | None
    cache: SelfExtendCache = field(repr=False)
    nbytes: int

    def shared(self, tokens: tuple[int, ...], settings: PositionMap | None) -> int:
        """Return how many first tokens of a prompt this can serve; 0 for none."""
        if settings != self.settings:
            return 0
        # The last token of a prompt is always run, for its logits.
        common = common_length(self.tokens, tokens[:-1])
        return common if common >= shortest(self.cache) else 0

    def covers(self, old: _Entry) -> bool:
        """Return whether this can do all that an old one can."""
        return (
            old.settings == self.settings
            and self.tokens[: len(old.tokens)] == old.tokens
            and shortest(self.cache) <= shortest(old.cache)
        )


class PrefixStore:
    """Keys and values of earlier prompts and their answers, by their tokens.

    Who takes a prefix has it alone, out of reach of everybody else and of eviction, and puts it
    back, longer, when done. Safe to use from several threads.

    Args:
        max_bytes: what all kept entries may take together, free space in their buffers included. An
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
        return sum(entry.nbytes for entry in list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def take(
        self,
        tokens: tuple[int, ...],
        settings: PositionMap | None,
        *,
        capacity: int,
        blank: Blank,
    ) -> tuple[SelfExtendCache | None, int, Hashable]:
        """Return a cache of the first tokens of a prompt, how many, and the state to put it under.

        The cache is None, and the tokens 0, if none is kept. The entry that shares most is taken:
        all of it, cut back, if most of it is shared, and otherwise a copy of the shared part.

        Args:
            tokens: the prompt.
            settings: the settings that it runs under; those of the entry have to be the same.
            capacity: tokens to allocate space for.
            blank: needed where the entry comes from a file.
        """
        with self._lock:
            state = self._forget_others()
            entry = max(self._entries, key=lambda x: x.shared(tokens, settings), default=None)
            shared = entry.shared(tokens, settings) if entry else 0
            filed = self._filed(tokens, settings, shared + _WORTH_LOADING, blank)
            if filed is not None:
                entry, shared = filed, filed.shared(tokens, settings)
            if entry is None or shared < _WORTH_REUSING:
                return None, 0, state
            cache = self._handed_out(entry, shared, capacity)
        cache.set_capacity(capacity)
        return cache, shared, state

    def put(
        self,
        tokens: tuple[int, ...],
        settings: PositionMap | None,
        cache: SelfExtendCache,
        state: Hashable,
    ) -> None:
        """Keep a cache of tokens; the least recently used are evicted for it.

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
            self._entries = [old for old in self._entries if not entry.covers(old)]
            self._entries.append(entry)
            evicted = [self._entries.pop()] if entry.nbytes > self.max_bytes else []
            while self.nbytes > self.max_bytes:
                evicted.append(self._entries.pop(0))
            self._write(evicted)

    def bytes_by_device(self) -> dict[str, int]:
        """Return the bytes that the kept entries take on each device."""
        held: Counter[str] = Counter()
        with self._lock:
            for entry in self._entries:
                held.update(bytes_by_device(entry.cache))
        return dict(held)

    def evict(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Evict entries, the least recently used first, until so many bytes are free by device.

        Returns:
            What was freed, by device.
        """
        freed: Counter[str] = Counter()
        with self._lock:
            evicted = []
            while self._entries and any(freed[name] < n for name, n in wanted.items()):
                evicted.append(self._entries.pop(0))
                freed.update(bytes_by_device(evicted[-1].cache))
            self._write(evicted)
        return dict(freed)

    def clear(self) -> None:
        """Forget everything in memory."""
        with self._lock:
            self._entries.clear()

    def flush(self) -> None:
        """Write all entries to the folder, if there is one, for other processes to find."""
        with self._lock:
            self._forget_others()
            self._write(self._entries)

    def _forget_others(self) -> Hashable:
        """Drop entries that the model as it is now did not make, and return its state."""
        state = self._state()
        if state != self._known:
            self._entries.clear()
        self._known = state
        return state

    def _handed_out(self, entry: _Entry, shared: int, capacity: int) -> SelfExtendCache:
        kept = entry in self._entries
        if kept:
            self._entries.remove(entry)
        if kept and shared * 2 < len(entry.tokens) and can_rewind(entry.cache):
            self._entries.append(entry)  # used just now
            return copied(entry.cache, shared, capacity)
        if can_rewind(entry.cache):
            rewind(entry.cache, shared, record=False)
        return entry.cache

    def _filed(
        self, tokens: tuple[int, ...], settings: PositionMap | None, least: int, blank: Blank
    ) -> _Entry | None:
        """Return an entry from the folder that can serve at least so many tokens."""
        if self.spill is None:
            return None
        saved = self.spill.load(tokens[:-1], settings, least, blank)
        if saved is None:
            return None
        start_recording(saved.cache)
        entry = _Entry(saved.tokens, saved.settings, saved.cache, saved.cache.nbytes)
        return entry if entry.shared(tokens, settings) >= least else None

    def _write(self, entries: list[_Entry]) -> None:
        if self.spill is not None:
            for entry in entries:
                self.spill.write(entry.tokens, entry.settings, entry.cache)
