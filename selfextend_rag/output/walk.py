"""Every schema within a schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_LITERAL = frozenset({"enum", "const", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def changed(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """Return a schema in which each one, the inner ones first, is what ``change`` returns for it.

    Args:
        schema: JSON values; left as it is. Values that stand for themselves, as in ``const``, and
            names of properties are no schemas.
        change: gets a copy that it may write to.
    """
    if isinstance(schema, list):
        return [changed(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return change({key: _part(key, value, change) for key, value in schema.items()})


def _part(key: str, value: Any, change: Callable[[Schema], Schema]) -> Any:
    if key in _LITERAL:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: changed(item, change) for name, item in value.items()}
    return changed(value, change)
