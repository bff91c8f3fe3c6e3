"""Dates and times that exist: the library's grammar of them also takes February 29 of any year,
the year 0 and leap seconds, which validators and date classes refuse."""

from __future__ import annotations

from typing import Any

_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_BY_FOUR = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)"
_DATE = f"({_YEAR}-((0[13-9]|1[0-2])-|02-([01]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"
_PATTERNS = {
    "date": f"^{_DATE}",
    "date-time": f"^{_DATE}[0-9]*[Tt]{_TIME}",
    "time": f"^{_TIME}",
}
_LITERAL = frozenset({"enum", "const", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})


def with_real_dates(schema: Any) -> Any:
    """Return a schema whose dates and times are held to a pattern beside their format.

    Args:
        schema: JSON values; left as it is.
    """
    if isinstance(schema, list):
        return [with_real_dates(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: _part(key, value) for key, value in schema.items()}
    name = schema.get("format")
    pattern = _PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is not None and "pattern" in schema:
        done["allOf"] = [*done.get("allOf", []), {"type": "string", "pattern": pattern}]
    elif pattern is not None:
        done["pattern"] = pattern
    return done


def _part(key: str, value: Any) -> Any:
    if key in _LITERAL:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: with_real_dates(item) for name, item in value.items()}
    return with_real_dates(value)
