"""A JSON schema made ready for a grammar, or a refusal that names what can't be enforced.

A schema is narrowed, and never widened, where a model would otherwise write without end or a
validator would refuse what the grammar library lets through: other properties of objects than they
name, numbers of many digits, and dates and times that do not exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version

from llguidance import LLMatcher

from selfextend_rag.errors import SchemaError

Schema = dict[str, object]

_OLDEST = (1, 9)  # version of llguidance

# White space as `json.dumps` writes it: what models have seen most. Where it is free, small models
# write spaces for ever, or a form that they have never seen, and other values than they mean.
_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Keywords of old drafts, unknown to today's; the library would ignore them.
_OBSOLETE = frozenset({"divisibleBy", "disallow", "extends"})

_LITERAL = frozenset({"enum", "const", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
# Besides these, an object's properties are given in more than one place.
_SHARED = frozenset({"allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "then", "else"})
_CHOICES = frozenset({"anyOf", "oneOf"})
_JOINING = frozenset({"allOf", "not", "if", "then", "else"})
_DECIDED = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})

# What says something of a value; besides these there are notes, such as a title.
_SAYING = (
    _SHARED
    | _JOINING
    | _DECIDED
    | _OBSOLETE
    | _NAMED - {"$defs", "definitions"}
    | {
        *(
            "type",
            "enum",
            "const",
            "format",
            "pattern",
            "minLength",
            "maxLength",
            "minimum",
            "maximum",
        ),
        *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "required", "propertyNames"),
        *("minProperties", "maxProperties", "dependentRequired", "dependencies", "items"),
        *("prefixItems", "additionalItems", "unevaluatedItems", "contains", "minContains"),
        *("maxContains", "minItems", "maxItems", "uniqueItems"),
    }
)
_TYPES = frozenset(("null", "boolean", "object", "array", "number", "integer", "string"))
# Where interfaces of models have a schema: OpenAI's, Anthropic's, and Converse of Amazon's.
_WRAPPERS = ("json_schema", "function", "toolSpec", "schema", "parameters", "input_schema")
_MORE_WRAPPERS = ("inputSchema", "json")

# A model that repeats itself writes digits for ever.
_LARGEST_INTEGER = 2**53 - 1  # that every JSON reader holds exactly (I-JSON, RFC 7493)
_LARGEST_NUMBER = 1e15
_STEP = 1e-9  # the library takes no finer one
_SMALLEST_SPAN = 1e-6  # between bounds; within less, numbers may need more decimals

# The library also takes February 29 of any year, the year 0, leap seconds and all decimals.
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


def schema_of(given: Mapping[str, object], whose: str = "the schema") -> Mapping[str, object]:
    """Return the JSON schema in a dictionary, in whichever form an interface of models has it.

    OpenAI's are ``{"type": "json_schema", "json_schema": ...}``, ``{"name", "strict", "schema"}``
    and, of a function, ``{"name", "parameters"}``, with ``"function"`` around it or not.

    Args:
        given: one of these, or a JSON schema; an empty one allows any JSON.
        whose: what to call it in an error.

    Raises:
        SchemaError: it is none of them, so nothing would be enforced.
    """
    saying, kind = _SAYING & given.keys(), given.get("type")
    if saying == {"type"} and isinstance(kind, str) and kind not in _TYPES:
        saying = frozenset()  # it is the type of a wrapper, such as "function"
    inner = (given.get(name) for name in (*_WRAPPERS, *_MORE_WRAPPERS))
    wrapped = next((each for each in inner if isinstance(each, Mapping)), None)
    if wrapped is not None and not saying:
        return schema_of(wrapped, whose)
    if given and not _SAYING & given.keys():
        raise SchemaError(
            f"{whose} says nothing of a value: it has no keyword of JSON Schema, but "
            f'{", ".join(map(str, list(given)[:9]))}; give one such as {{"type": "object", '
            '"properties": ...}, alone or as the "schema" of {"name": ..., "schema": ...}'
        )
    return given


def require_grammars() -> None:
    """Check that the grammar library is one that enforces what is said of it here.

    Raises:
        SchemaError: it is older than 1.9, whose numbers and white space are not those of a schema.
    """
    found = version("llguidance")
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST:
        raise SchemaError(
            f"answers constrained by a schema or tools need llguidance 1.9 or later, not {found}, "
            "which refuses valid numbers and lets endless white space through; vLLM pins it, so "
            "ask vLLM's server for these, or use an environment without vLLM"
        )


def schema_text(schema: Mapping[str, object], whose: str = "the schema") -> str:
    """Return a checked and narrowed schema as JSON, for a ``%json`` in a grammar.

    Args:
        schema: a JSON schema.
        whose: what to call it in an error.

    Raises:
        SchemaError: it is no JSON schema, or holds what can't be enforced or be satisfied.
    """
    require_grammars()
    if not isinstance(schema, Mapping):
        raise SchemaError(
            f"{whose} must be a dictionary (a JSON object), got {type(schema).__name__}; "
            "convert classes first, such as Model.model_json_schema() of Pydantic"
        )
    schema = schema_of(schema, whose)
    try:
        copied: Schema = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{whose} must hold JSON values alone: {error}") from error
    obsolete: set[str] = set()

    def note(inner: Schema, _: bool) -> Schema:
        obsolete.update(_OBSOLETE & inner.keys())
        return inner

    _changed(copied, note)
    reason = f"keywords of an old draft: {', '.join(sorted(obsolete))}" if obsolete else ""
    if not reason:
        ready = _changed(closed(copied), _with_real_dates)
        text, reason = _checked(_changed(ready, _with_bounds))
        if reason:  # the bounds of numbers may clash with what else is said of them
            text, reason = _checked(ready)
    if reason:
        raise SchemaError(
            f"{whose} can't be enforced as it is: {reason[:400]}; leave that out and check the "
            "answer for it, or say it in other keywords"
        )
    return text


def _checked(schema: Schema) -> tuple[str, str]:
    """Return a schema with our options as JSON, and what the library can't do of it."""
    text = json.dumps({**schema, "x-guidance": _OPTIONS}, ensure_ascii=False)
    _, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(text))
    # A warning, too, says that something is not enforced.
    return text, " ".join(messages[0].split()) if messages else ""


def closed(schema: Schema) -> Schema:
    """Return a schema whose objects hold the properties they name and no others.

    By the letter of JSON Schema any may follow; a model free to invent some keeps inventing.
    Left open is an object that names none, that says what others may follow, whose properties are
    given in several places (``allOf``, or ``anyOf`` or a reference besides ``properties``), or that
    requires more than it names.
    """
    merged: set[str] = set()

    def close(inner: Schema, alone: bool) -> Schema:
        reference = inner.get("$ref")
        if not alone and isinstance(reference, str):
            merged.add(reference)
        if alone and _closable(inner):
            inner["additionalProperties"] = False
        return inner

    while True:  # a definition is open if one that is open refers to it
        before = len(merged)
        done = _changed(schema, close, merged)
        if len(merged) == before:
            return done


def _alone(schema: Schema) -> bool:
    """Return whether the properties of an object are given in one place of this schema."""
    if "allOf" in schema:
        return False
    places = [key for key in schema if key in _SHARED or key in ("properties", "required")]
    return len(places) <= 1 or not _SHARED.intersection(places)


def _closable(schema: Schema) -> bool:
    named, types = schema.get("properties"), schema.get("type", "object")
    if not isinstance(named, dict) or _DECIDED.intersection(schema):
        return False
    if "object" not in (types if isinstance(types, list) else [types]):
        return False
    required, least = schema.get("required", []), schema.get("minProperties", 0)
    whole = isinstance(required, list) and set(required) <= set(named)
    return whole and (not isinstance(least, int) or least <= len(named))


def _changed(
    schema: Schema,
    change: Callable[[Schema, bool], Schema],
    merged: Collection[str] = (),
    place: str = "#",
    alone: bool = True,
) -> Schema:
    """Return a schema in which each one, the inner ones first, is what ``change`` returns for it.

    ``change`` gets a copy that it may write to, and whether an object's properties are given there
    alone; those that ``merged`` refers to are joined with others. Literal values, as in ``const``,
    and names of properties are no schemas.
    """
    alone = alone and place not in merged and _alone(schema)

    def changed(value: object, place: str, alone: bool) -> object:
        if isinstance(value, list):
            return [changed(item, f"{place}/{i}", alone) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        return _changed(value, change, merged, place, alone)

    parts: Schema = {}
    for key, value in schema.items():
        inner = f"{place}/{key}"
        if key in _NAMED and isinstance(value, dict):
            may = key != "dependentSchemas"
            value = {name: changed(item, f"{inner}/{name}", may) for name, item in value.items()}
        elif key not in _NAMED and key not in _LITERAL:
            value = changed(value, inner, alone if key in _CHOICES else key not in _JOINING)
        parts[key] = value
    return change(parts, alone)


def _with_bounds(schema: Schema, _: bool) -> Schema:
    """Return one schema with bounds for its numbers, and few decimals.

    What the schema itself says of a number stays: its bounds, its ``multipleOf``, its values.
    """
    kind = schema.get("type")
    kinds = {str(name) for name in (kind if isinstance(kind, list) else [kind])}
    if not kinds & {"integer", "number"} or {"enum", "const"} & set(schema):
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
    values = [schema.get(name) for name in names]
    return next((v for v in values if isinstance(v, int | float) and not isinstance(v, bool)), None)


def _with_real_dates(schema: Schema, _: bool) -> Schema:
    """Return one schema with a pattern besides its format of dates or times."""
    name, others = schema.get("format"), schema.get("allOf", [])
    pattern = _PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is None or not isinstance(others, list):
        return schema
    if "pattern" not in schema:
        return {**schema, "pattern": pattern}
    return {**schema, "allOf": [*others, {"type": "string", "pattern": pattern}]}
