"""A JSON schema as a grammar, or a refusal that names what can't be enforced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from selfextend_rag.errors import SchemaError

# One space where JSON allows any white space: small models write spaces and line ends for ever.
OPTIONS = {"whitespace_pattern": "[ ]?"}


def json_grammar(schema: Mapping[str, Any], *, leading_space: bool = False) -> str:
    """Return the grammar of the JSON texts that a schema allows, for ``Grammars.compiled``.

    Args:
        schema: a JSON schema.
        leading_space: allow a space before the JSON, as where an answer begins after a colon.

    Raises:
        SchemaError: it is no JSON schema.
    """
    source = schema_text(schema)
    if leading_space:
        return LLMatcher.grammar_from_lark(f'start: " "? %json {source}')
    return LLMatcher.grammar_from_json_schema(source)


def schema_text(schema: Mapping[str, Any]) -> str:
    """Return a schema as JSON with our options, for a ``%json`` in a grammar.

    Raises:
        SchemaError: it is no JSON schema.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(
            f"a schema must be a dictionary (a JSON object), got {type(schema).__name__}; "
            "convert classes first, such as Model.model_json_schema() of Pydantic"
        )
    try:
        return json.dumps({**schema, "x-guidance": OPTIONS}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"a schema must hold JSON values alone: {error}") from error
