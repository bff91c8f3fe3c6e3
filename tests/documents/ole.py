"""A writer of OLE2 compound files, the containers of Outlook's messages and old Office files.

After [MS-CFB]: sectors of 512 bytes, short streams in a stream of their own, one directory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise

_END, _FREE, _FAT = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD
Tree = Mapping[str, "bytes | Tree"]


def ole_bytes(tree: Tree) -> bytes:
    """The file with these streams, and folders as mappings."""
    entries: list[list] = [["Root Entry", 5, _FREE, _FREE, _FREE, 0, 0]]
    mini, mini_fat, sectors, fat = bytearray(), [], bytearray(), []

    def stored(data: bytes, size: int, out: bytearray, table: list[int]) -> int:
        first, count = len(table), -(-len(data) // size)
        table.extend(range(first + 1, first + count))
        table.append(_END)
        out.extend(data.ljust(count * size, b"\0"))
        return first

    def add(folder: Tree) -> int:
        numbers = []
        for name, content in folder.items():
            number = len(entries)
            numbers.append(number)
            entries.append([name, 2, _FREE, _FREE, _FREE, _END, 0])
            if isinstance(content, bytes):
                if content:
                    args = (64, mini, mini_fat) if len(content) < 4096 else (512, sectors, fat)
                    entries[number][5:] = [stored(content, *args), len(content)]
            else:
                entries[number][1] = 1
                entries[number][4] = add(content)
        for number, following in pairwise(numbers):
            entries[number][3] = following
        return numbers[0] if numbers else _FREE

    entries[0][4] = add(tree)
    entries[0][5:] = [stored(bytes(mini), 512, sectors, fat) if mini else _END, len(mini)]
    mini_start = _END
    if mini_fat:
        mini_start = stored(
            struct.pack(f"<{len(mini_fat)}I", *mini_fat).ljust(512, b"\xff"), 512, sectors, fat
        )
    directory = b"".join(map(_entry, entries))
    directory_start = stored(directory, 512, sectors, fat)
    count = 1
    while (len(fat) + count) > count * 128:
        count += 1
    fat_start = len(fat)
    fat += [_FAT] * count
    fat += [_FREE] * (count * 128 - len(fat))
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16)
    header += struct.pack(
        "<HHHHH6x9I",
        0x3E,
        3,
        0xFFFE,
        9,
        6,
        0,
        count,
        directory_start,
        0,
        4096,
        *(mini_start, -(-len(mini_fat) // 128), _END, 0),
    )
    header += struct.pack(
        "<109I", *[*range(fat_start, fat_start + count), *[_FREE] * (109 - count)]
    )
    return header + bytes(sectors) + struct.pack(f"<{len(fat)}I", *fat)


def _entry(entry: list) -> bytes:
    name, kind, left, right, child, start, size = entry
    encoded = name.encode("utf-16-le")
    packed = struct.pack(
        "<64sHBBIII36xIQ", encoded, len(encoded) + 2, kind, 1, left, right, child, start, size
    )
    assert len(packed) == 128
    return packed
