"""Dates and times that exist: the library's grammar of them also takes February 29 of any year,
the year 0, leap seconds, which validators and date classes refuse, and fractions without end."""

from __future__ import annotations

from selfextend_rag.output.walk import Schema, changed

_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_BY_FOUR = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_BY_FOUR}|{_BY_FOUR}00)"
_DATE = f"({_YEAR}-((0[13-9]|1[0-2])-|02-([01]|2[0-8]))|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]{1,9})?[Zz+-]"
_PATTERNS = {
    "date": f"^{_DATE}",
    "date-time": f"^{_DATE}[0-9]*[Tt]{_TIME}",
    "time": f"^{_TIME}",
}


def with_real_dates(schema: Schema) -> Schema:
    """Return a schema whose dates and times are held to a pattern beside their format.

    Args:
        schema: JSON values; left as it is.
    """
    return changed(schema, _with_real_dates)


def _with_real_dates(schema: Schema) -> Schema:
    name = schema.get("format")
    pattern = _PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is not None and "pattern" in schema:
        more = {"type": "string", "pattern": pattern}
        return {**schema, "allOf": [*schema.get("allOf", []), more]}
    return schema if pattern is None else {**schema, "pattern": pattern}
