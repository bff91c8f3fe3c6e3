"""Bytes in words, and words in bytes."""

from __future__ import annotations

import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_FACTORS = {
    "": 1, "B": 1,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


def in_words(count: int) -> str:
    """Return a number of bytes as people read it: ``3.2 GiB``."""
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
