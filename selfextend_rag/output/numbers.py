"""Numbers with an end: a model that repeats itself writes digits for ever where it may.

Narrower than the schema, and never wider: integers that every JSON reader holds exactly (those of
I-JSON, RFC 7493), and numbers up to 1e15 with nine decimals.
"""

from __future__ import annotations

from selfextend_rag.output.walk import Schema, changed

_LARGEST_INTEGER = 2**53 - 1
_LARGEST_NUMBER = 1e15
_STEP = 1e-9  # the library takes no finer one
_SMALLEST_SPAN = 1e-6  # between bounds; in less, numbers may need more decimals


def with_ends(schema: Schema) -> Schema:
    """Return a schema whose integers and numbers have bounds, and the latter few decimals.

    What the schema itself says of a number stays: its bounds, its ``multipleOf``, its values.

    Args:
        schema: JSON values; left as it is.
    """
    return changed(schema, _with_ends)


def _with_ends(schema: Schema) -> Schema:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not {"integer", "number"}.intersection(map(str, kinds)) or {"enum", "const"} & set(schema):
        return schema
    largest = _LARGEST_NUMBER if "number" in kinds else _LARGEST_INTEGER
    low = _bound(schema, "minimum", "exclusiveMinimum")
    high = _bound(schema, "maximum", "exclusiveMaximum")
    if low is None and (high is None or high > -largest):
        schema["minimum"] = -largest
    if high is None and (low is None or low < largest):
        schema["maximum"] = largest
    wide = low is None or high is None or high - low >= _SMALLEST_SPAN
    if "number" in kinds and "multipleOf" not in schema and wide:
        schema["multipleOf"] = _STEP
    return schema


def _bound(schema: Schema, *names: str) -> float | None:
    values = [schema[name] for name in names if name in schema]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers[0] if numbers else None
