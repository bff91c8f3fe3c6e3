"""A folder for prefixes that memory has no room for; several processes may share it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from selfextend_rag.cache import files, persist
from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.identity import digest
from selfextend_rag.cache.rewind import has_state
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, ReadingFileError
from selfextend_rag.positions import SelfExtend

_log = logging.getLogger(__name__)
_SUFFIX = ".prefix"

_Known = tuple[tuple[int, int], tuple[int, ...], SelfExtend | None]


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
        self._known: dict[Path, _Known] = {}
        files.make_folder(folder)

    def write(
        self, tokens: tuple[int, ...], settings: SelfExtend | None, cache: SelfExtendCache
    ) -> None:
        """Write a prefix, unless it is there already; states of recurrent layers are left out."""
        if has_state(cache):
            return
        path = self.folder / (self._prefix() + _named(tokens, settings) + _SUFFIX)
        try:
            if path.exists():
                os.utime(path)
                return
            found = persist.snapshot(cache)
            if sum(x.nbytes for x in found.tensors.values()) <= self.max_bytes:
                persist.save(path, found, tokens, settings, fingerprint=self._fingerprint())
                files.remove_oldest(self.folder, f"*{_SUFFIX}", self.max_bytes)
        except (ReadingFileError, CacheMismatchError, OSError) as error:
            _log.warning("a prefix was not kept in %s: %s", self.folder, error)

    def find(self, tokens: tuple[int, ...], settings: SelfExtend | None, least: int) -> Path | None:
        """Return the file that shares most first tokens with these, if that are enough."""
        best, shared = None, least - 1
        for path in self.folder.glob(f"{self._prefix()}*{_SUFFIX}"):
            known = self._look(path)
            if known is None or known[2] != settings or len(known[1]) <= shared:
                continue
            held = known[1]
            if held[: shared + 1] == tokens[: shared + 1]:
                best = path
                while shared < min(len(held), len(tokens)) and held[shared] == tokens[shared]:
                    shared += 1
        return best

    def load(self, path: Path, blank: Callable[[], SelfExtendCache]) -> persist.Saved | None:
        """Return what a file holds; None, and no such file any more, if it is damaged."""
        try:
            saved = persist.load(path, lambda _: blank(), fingerprint=self._fingerprint())
        except (ReadingFileError, CacheMismatchError) as error:
            self._give_up(path, error)
            return None
        with suppress(FileNotFoundError):  # another process may have removed it by now
            os.utime(path)
        return saved

    def _look(self, path: Path) -> _Known | None:
        """Return a file's tokens and settings, read when the file is new or has changed."""
        try:
            state = path.stat()
            stamp = (state.st_ino, state.st_size)
            if path not in self._known or self._known[path][0] != stamp:
                tokens, settings = persist.tokens_in(path, self._fingerprint())
                self._known[path] = stamp, tokens, settings
        except FileNotFoundError:
            self._known.pop(path, None)
            return None
        except (ReadingFileError, CacheMismatchError) as error:
            self._give_up(path, error)
            return None
        return self._known[path]

    def _give_up(self, path: Path, error: Exception) -> None:
        self._known.pop(path, None)
        if path.exists():  # if not, another process removed it just now, as it may
            _log.warning("a kept prefix can't be used: %s", error)
            if isinstance(error, CorruptReadingError):
                files.remove(path)

    def _prefix(self) -> str:
        parts = repr(sorted(self._fingerprint().items()))
        return digest(parts)[:16] + "-"


def _named(tokens: tuple[int, ...], settings: SelfExtend | None) -> str:
    return digest(f"{settings} {tokens}")
