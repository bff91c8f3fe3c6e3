"""How many bytes rounded keys and values take; integers only, for planners and caches alike.

A layer that keeps all tokens can keep them in 8 or 4 bits. Each head of a token is rounded in equal
groups of channels, with a step and a lowest value of 16 bits for each group.
"""

from __future__ import annotations

from collections.abc import Iterable

KV_BITS = (4, 8)
"""What a key or value can be rounded to."""

_MOST_CHANNELS = {8: 64, 4: 32}  # of a group; a smaller group is finer and takes more scales
_SCALE_BYTES = 4  # of a group: a step and a lowest value


def check_kv_bits(bits: int | None) -> None:
    """Refuse what keys and values can't be rounded to; None is the model's own precision.

    Raises:
        ValueError: it is neither None nor one of `KV_BITS`.
    """
    if bits is not None and (isinstance(bits, bool) or bits not in KV_BITS):
        raise ValueError(f"kv_bits must be 8, 4 or None (the model's own precision), got {bits!r}")


def why_not_rounded(bits: int, kinds: Iterable[str]) -> str:
    """Return what to say of a model without any layer whose keys can be rounded."""
    named = ", ".join(sorted(set(kinds))) or "none"
    return (
        f"kv_bits={bits} would change nothing: none of the model's layers keeps all tokens "
        f"(they are {named}); leave kv_bits out"
    )


def groups_in(channels: int, bits: int) -> int:
    """Return in how many equal groups the channels of a head are rounded."""
    fewest = -(-channels // _MOST_CHANNELS[bits])
    return next(n for n in range(fewest, channels + 1) if channels % n == 0)


def code_bytes(channels: int, bits: int) -> int:
    """Return the bytes of one token's rounded channels."""
    return -(-channels * bits // 8)


def head_bytes(channels: int, bits: int, tokens: int) -> int:
    """Return the bytes of one head's keys, or values, for so many tokens."""
    return tokens * (code_bytes(channels, bits) + _SCALE_BYTES * groups_in(channels, bits))
