"""Answers held to a grammar while they are generated: JSON for a schema, and calls of tools."""

from selfextend_rag.output.calls import CallForm, calls_grammar, read_calls
from selfextend_rag.output.grammars import Grammar, Grammars, grammars_of
from selfextend_rag.output.schema import json_grammar
from selfextend_rag.output.thought import Thought

__all__ = [
    "CallForm",
    "Grammar",
    "Grammars",
    "Thought",
    "calls_grammar",
    "grammars_of",
    "json_grammar",
    "read_calls",
]
