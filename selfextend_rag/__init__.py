"""A local model reads whole documents, its context window stretched by SelfExtend.

Importing this package does nothing: no patch, no download, and no module beyond this one until a
name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfextend_rag.patch import extend, extended, restore, support
    from selfextend_rag.positions import SelfExtend

_HOMES = {
    "SelfExtend": "positions",
    "extend": "patch",
    "extended": "patch",
    "restore": "patch",
    "support": "patch",
}

__all__ = ["SelfExtend", "extend", "extended", "restore", "support"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
