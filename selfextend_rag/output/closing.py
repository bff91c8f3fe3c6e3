"""Objects that name their properties, held to these: a narrower schema, and never a wider one.

By the letter of JSON Schema any further property may follow where ``additionalProperties`` is not
given. A model free to invent them goes on doing so, and few who write a schema mean it.
"""

from __future__ import annotations

from typing import Any

_DEFINITIONS = ("$defs", "definitions")
# Beside these, an object's properties are given in more than one place.
_SHARED = frozenset({"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else"})
_DECIDED = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})
_LITERAL = frozenset({"enum", "const", "default", "examples"})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects hold the properties they name and no others.

    Left open is an object that names none, that says what others may follow, whose properties are
    given in several places (``allOf``, or ``anyOf`` or a reference beside ``properties``), or that
    requires more than it names.

    Args:
        schema: JSON values; left as it is.
    """
    merged: set[str] = set()
    while True:  # a definition is open if one that is open refers to it
        before = len(merged)
        done = _closed(schema, True, merged, "#")
        if len(merged) == before:
            return done


def _closed(schema: Any, may: bool, merged: set[str], place: str) -> Any:
    """Return one schema closed; ``merged`` gathers references that must stay open."""
    if isinstance(schema, list):
        return [_closed(item, may, merged, f"{place}/{i}") for i, item in enumerate(schema)]
    if not isinstance(schema, dict):
        return schema
    may = may and place not in merged
    shared = not may or not _alone(schema)
    reference = schema.get("$ref")
    if shared and isinstance(reference, str):
        merged.add(reference)
    done = {
        key: _part(key, value, not shared, merged, f"{place}/{key}")
        for key, value in schema.items()
    }
    if may and not shared and _closable(schema):
        done["additionalProperties"] = False
    return done


def _part(key: str, value: Any, alone: bool, merged: set[str], place: str) -> Any:
    if key in _LITERAL:
        return value
    if key in ("properties", "patternProperties", *_DEFINITIONS):
        if not isinstance(value, dict):
            return value
        return {k: _closed(v, True, merged, f"{place}/{k}") for k, v in value.items()}
    if key in ("anyOf", "oneOf"):
        return _closed(value, alone, merged, place)
    if key in ("allOf", "not", "if", "then", "else", "dependentSchemas"):
        return _closed(value, False, merged, place)
    return _closed(value, True, merged, place)


def _alone(schema: dict[str, Any]) -> bool:
    """Return whether the properties of an object are given in one place of this schema."""
    if "allOf" in schema:
        return False
    places = [key for key in schema if key in _SHARED or key in ("properties", "required")]
    return len(places) <= 1 or not _SHARED.intersection(places)


def _closable(schema: dict[str, Any]) -> bool:
    named, types = schema.get("properties"), schema.get("type", "object")
    if not isinstance(named, dict) or _DECIDED.intersection(schema):
        return False
    if "object" not in (types if isinstance(types, list) else [types]):
        return False
    required, least = schema.get("required", []), schema.get("minProperties", 0)
    return set(required) <= set(named) and (not isinstance(least, int) or least <= len(named))
