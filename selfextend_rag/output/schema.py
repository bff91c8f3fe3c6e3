"""A JSON schema as a grammar, or a refusal that names what can't be enforced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from selfextend_rag.errors import SchemaError
from selfextend_rag.output.closing import closed
from selfextend_rag.output.formats import with_real_dates
from selfextend_rag.output.numbers import with_ends
from selfextend_rag.output.thought import Thought
from selfextend_rag.output.walk import changed

# One space where JSON allows any white space: small models write spaces and line ends for ever.
_OPTIONS = {"whitespace_pattern": "[ ]?"}
# Keywords of old drafts, which today's know no more; the library would pass over them.
_OBSOLETE = frozenset({"divisibleBy", "disallow", "extends"})


def json_grammar(
    schema: Mapping[str, Any],
    *,
    leading_space: bool = False,
    thought: Thought | None = None,
) -> str:
    """Return the grammar of the JSON texts that a schema allows, for ``Grammars.compiled``.

    Args:
        schema: a JSON schema.
        leading_space: allow a space before the JSON, as where an answer begins after a colon.
        thought: how a thought ends that the prompt has begun; it comes before the JSON.

    Raises:
        SchemaError: it is no JSON schema, or holds what can't be enforced or be satisfied.
    """
    source = schema_text(schema)
    if thought is not None:
        return "\n".join([*thought.rules, f"start: thought %json {source}"])
    if leading_space:
        return LLMatcher.grammar_from_lark(f'start: " "? %json {source}')
    return LLMatcher.grammar_from_json_schema(source)


def schema_text(schema: Mapping[str, Any], whose: str = "the schema") -> str:
    """Return a checked schema as JSON with our options, for a ``%json`` in a grammar.

    It is narrowed where models go on for ever otherwise, or validators refuse: objects hold the
    properties they name (``closed``), numbers have bounds (``with_ends``), dates exist
    (``with_real_dates``).

    Args:
        schema: a JSON schema.
        whose: what to call it in an error.

    Raises:
        SchemaError: it is no JSON schema, or holds what can't be enforced or be satisfied.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(
            f"{whose} must be a dictionary (a JSON object), got {type(schema).__name__}; "
            "convert classes first, such as Model.model_json_schema() of Pydantic"
        )
    try:
        copied = json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{whose} must hold JSON values alone: {error}") from error
    if obsolete := sorted(_OBSOLETE & _keywords(copied)):
        raise SchemaError(_refusal(whose, f"keywords of an old draft: {', '.join(obsolete)}"))
    ready = with_real_dates(closed(copied))
    text, reason = _checked(with_ends(ready))
    if reason:  # what numbers are held to may clash with what else is said of them
        text, reason = _checked(ready)
    if reason:
        raise SchemaError(_refusal(whose, reason))
    return text


def _checked(schema: dict[str, Any]) -> tuple[str, str]:
    """Return a schema with our options as JSON, and what the library objects to in it."""
    text = json.dumps({**schema, "x-guidance": _OPTIONS}, ensure_ascii=False)
    _, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(text))
    # A warning, too, says that something is not enforced.
    return text, " ".join(messages[0].split()) if messages else ""


def _refusal(whose: str, reason: str) -> str:
    return (
        f"{whose} can't be enforced as it stands: {reason[:400]}; leave that out and check the "
        "answer for it, or say it in other keywords"
    )


def _keywords(schema: dict[str, Any]) -> set[str]:
    """Return the keywords of a schema and of all schemas in it."""
    found: set[str] = set()

    def note(inner: dict[str, Any]) -> dict[str, Any]:
        found.update(inner)
        return inner

    changed(schema, note)
    return found
