"""Files that are replaced whole, and folders of them that stay within a size.

A file is written under another name in its folder, flushed to the disk and then renamed: at any
moment the old file is there or the new one, whole, whichever process writes or is killed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from selfextend_rag.errors import ReadingFileError

_TEMPORARY = ".tmp"
_STALE_SECONDS = 3600  # no writer pauses so long; its temporary file was left by a killed one


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` when the block ends well."""
    remove_stale(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # raised again; whatever it is, no part of a file stays
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name, too, is to survive a power cut
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stale(folder: Path, name: str = "*") -> None:
    """Remove temporary files that killed writers left in a folder."""
    for left in folder.glob(f".{name}.*{_TEMPORARY}"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()
        except OSError:  # another process was faster, or it is not ours to remove
            continue


def last_used(path: Path) -> int:
    """Return when a file was last written or touched, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process may have removed it
        return 0


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def remove_oldest(folder: Path, suffix: str, max_bytes: int) -> None:
    """Remove the files with a suffix that were used longest ago, until the rest fits."""
    remove_stale(folder)
    files = []
    for path in folder.glob(f"*{suffix}"):
        with suppress(FileNotFoundError):  # another process removes too
            state = path.stat()
            files.append((state.st_mtime_ns, state.st_size, path))
    surplus = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in sorted(files):
        if surplus > 0:
            remove(path)
            surplus -= size


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there.

    Raises:
        ReadingFileError: it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReadingFileError(
            f"can't use {folder} as a folder: {error.strerror or error}; name another"
        ) from error
