"""Schemas: what is refused and how, what an open object becomes, and that nothing gets wider."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag import SchemaError
from selfextend_rag.output.grammar import Grammars, json_grammar
from selfextend_rag.output.schema import closed
from tests.output.random_schemas import random_schema
from tests.tiny import byte_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from grammar_features import FEATURES

TOKENIZER = byte_tokenizer()
GRAMMARS = Grammars(TOKENIZER)
REFUSED = {
    "propertyNames": "propertyNames",
    "dependentRequired": "dependentRequired",
    "oneOf, overlapping": "oneOf",
    "not": '"not"',
    "if, then, else": '"if"',
    "pattern with look-ahead": "look-ahead",
    "uniqueItems": "uniqueItems",
    "contains": "contains",
    "format of no known name": "shoe-size",
    "nothing can be valid": "Unsatisfiable",
}


def takes(schema, value, **options):
    """Whether an answer constrained to the schema could be this value."""
    text = value if options.pop("as_text", False) else json.dumps(value, ensure_ascii=False)
    constraint = GRAMMARS.compiled(json_grammar(schema, **options), (1,)).start()
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    for token in [*ids, TOKENIZER.eos_token_id]:
        if constraint.finished:
            return token == TOKENIZER.eos_token_id
        scores = constraint.mask(torch.zeros(1, len(TOKENIZER)))
        if scores[0, token] == -torch.inf:
            return False
        constraint.accept(token)
    return constraint.finished


@pytest.mark.parametrize("feature", sorted(set(FEATURES) - set(REFUSED)))
def test_a_feature_lets_through_what_is_valid_and_nothing_else(feature):
    schema, valid, invalid = FEATURES[feature]
    narrower = closed(schema)
    for value in valid:
        # What only an open object takes is left out, and numbers beyond 1e15.
        still = jsonschema.Draft202012Validator(narrower).is_valid(value) and value != 1e30
        assert takes(schema, value) is still, value
    assert not [value for value in invalid if takes(schema, value)]


@pytest.mark.parametrize(("feature", "named"), sorted(REFUSED.items()))
def test_what_can_not_be_enforced_is_refused_by_name(feature, named):
    with pytest.raises(SchemaError, match=named) as refused:
        json_grammar(FEATURES[feature][0])
    assert "can't be enforced as it is" in str(refused.value)
    assert "leave that out" in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "number", "divisibleBy": 2}, "old draft: divisibleBy"),
        ({"properties": {"a": {"disallow": "string"}}}, "old draft: disallow"),
        ({"type": "any"}, "Invalid type: any"),
        ({"$ref": "#/$defs/x"}, "does not exist"),
        ({"$ref": "http://example.com/x"}, "example.com/x"),
        ({"type": "object", "dependencies": {}}, "dependencies"),
        ({"type": "integer", "minimum": float("nan")}, "JSON values alone"),
        ({"const": datetime.date(2024, 1, 1)}, "JSON values alone"),
        ("integer", r"a dictionary.*got str.*model_json_schema"),
        ({"type": "string", "x-guidance": {"lenient": True}, "not": {}}, '"not"'),
    ],
)
def test_what_is_no_schema_is_refused(schema, message):
    with pytest.raises(SchemaError, match=message):
        json_grammar(schema)


COLOUR = {"title": "Colour", "enum": ["red", "blue"]}


@pytest.mark.parametrize(
    "wrapped",
    [
        COLOUR,
        {"name": "colour", "strict": True, "schema": COLOUR},
        {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR}},
        {"type": "json_schema", "name": "colour", "schema": COLOUR},
        {"type": "function", "function": {"name": "colour", "parameters": COLOUR}},
        {"name": "colour", "description": "One.", "parameters": COLOUR},
        {"type": "custom", "name": "colour", "input_schema": COLOUR},
        {"toolSpec": {"name": "colour", "inputSchema": {"json": COLOUR}}},
    ],
)
def test_a_schema_is_found_in_the_forms_of_other_interfaces(wrapped):
    """All but the first were taken for schemas that allow anything."""
    assert takes(wrapped, "red")
    assert not takes(wrapped, "green")
    assert not takes(wrapped, 1)


@pytest.mark.parametrize(
    "schema",
    [
        {"title": "Colour"},
        {"name": "colour"},
        {"colour": "string"},
        {"$defs": {"colour": COLOUR}},
        {"name": "colour", "schema": {"colour": "string"}},
        {"type": "function", "function": {"name": "colour"}},
    ],
)
def test_what_would_allow_anything_by_mistake_is_refused(schema):
    with pytest.raises(SchemaError, match="says nothing of a value: it has no keyword of JSON"):
        json_grammar(schema)


def test_names_of_properties_are_no_keywords():
    schema = {"type": "object", "properties": {"extends": {"const": {"disallow": 1}}}}
    assert takes(schema, {"extends": {"disallow": 1}})


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "value", "taken"),
    [
        (OPEN, {"a": 1, "b": 2}, False),
        ({**OPEN, "additionalProperties": True}, {"a": 1, "b": 2}, True),
        ({**OPEN, "patternProperties": {"^b": {}}}, {"a": 1, "b": 2}, True),
        ({**OPEN, "required": ["a", "b"]}, {"a": 1, "b": 2}, True),
        ({**OPEN, "minProperties": 2}, {"a": 1, "b": 2}, True),
        ({"type": "object"}, {"b": 2}, True),
        ({"type": "object", "properties": {}}, {"b": 2}, False),
        ({"type": "array", "items": OPEN}, [{"a": 1, "b": 2}], False),
        ({"anyOf": [OPEN, {"type": "null"}]}, {"a": 1, "b": 2}, False),
        ({"allOf": [OPEN, {"properties": {"b": {"type": "integer"}}}]}, {"a": 1, "b": 2}, True),
        ({"$defs": {"o": OPEN}, "$ref": "#/$defs/o"}, {"a": 1, "b": 2}, False),
        (
            {"$defs": {"o": OPEN}, "allOf": [{"$ref": "#/$defs/o"}, {"required": ["b"]}]},
            {"a": 1, "b": 2},
            True,
        ),
        (
            {
                "$defs": {"o": OPEN, "p": {"$ref": "#/$defs/o"}},
                "allOf": [{"$ref": "#/$defs/p"}, {"properties": {"b": {"type": "integer"}}}],
            },
            {"a": 1, "b": 2},
            True,
        ),
    ],
)
def test_objects_hold_what_they_name_where_that_is_said_in_one_place(schema, value, taken):
    assert takes(schema, value) is taken


def test_closing_changes_nothing_that_it_is_given():
    before = json.dumps(OPEN)
    closed(OPEN)
    assert json.dumps(OPEN) == before


@pytest.mark.parametrize("seed", range(30))
def test_closing_only_ever_narrows(seed):
    """Whatever a closed schema takes, the open one takes: checked on values with more in them."""
    schema = random_schema(seed)
    narrow = closed(json.loads(json.dumps(schema)))
    assert set(narrow["properties"]) == set(schema["properties"])
    wide = jsonschema.Draft202012Validator(schema)
    tight = jsonschema.Draft202012Validator(narrow)
    for value in ({}, {"name": 1}, {"zz": 1}, {"name": "x", "zz": None}):
        assert wide.is_valid(value) or not tight.is_valid(value)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"a": 1}', True),
        ('{"a":1}', False),
        ('{ "a": 1}', False),
        ('{"a":  1}', False),
        ('{\n"a":1}', False),
        (' {"a": 1}', False),
        ('{"a": 1} ', False),
    ],
)
def test_white_space_is_as_json_dumps_writes_it(text, taken):
    assert takes(OPEN, text, as_text=True) is taken


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"a": [1, 2], "b": {}}', True),
        ('{"a": [1,2], "b": {}}', False),
        ('{"a": [1, 2],"b": {}}', False),
        ('{"a": [1, 2], "b":{}}', False),
        ('{"a": [ 1, 2], "b": {}}', False),
    ],
)
def test_white_space_within_lists_and_between_properties_is_too(text, taken):
    lists = {"type": "array", "items": {"type": "integer"}}
    schema = {"type": "object", "properties": {"a": lists, "b": {"type": "object"}}}
    assert takes(schema, text, as_text=True) is taken


def test_one_space_may_lead_where_an_answer_follows_a_colon():
    assert takes(OPEN, ' {"a": 1}', as_text=True, leading_space=True)
    assert not takes(OPEN, '  {"a": 1}', as_text=True, leading_space=True)


@pytest.mark.parametrize("form", ["date", "date-time", "time"])
@given(moment=st.datetimes())
@settings(max_examples=60, deadline=None)
def test_every_date_and_time_that_exists_is_let_through(form, moment):
    text = {
        "date": moment.date().isoformat(),
        "time": moment.time().isoformat() + "Z",
        "date-time": moment.isoformat() + "+01:00",
    }[form]
    assert takes({"type": "string", "format": form}, text)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("date", "0000-01-01"),
        ("date", "2023-02-29"),
        ("date", "1900-02-29"),
        ("date", "2024-02-30"),
        ("date", "2024-04-31"),
        ("date-time", "2023-02-29T10:00:00Z"),
        ("date-time", "2024-02-28T23:59:60Z"),
        ("time", "23:59:60Z"),
        ("time", "23:59:59.0123456789Z"),
    ],
)
def test_dates_and_times_that_do_not_exist_are_not(form, text):
    assert not takes({"type": "string", "format": form}, text)


def test_a_pattern_beside_a_date_counts_too():
    schema = {"type": "string", "format": "date", "pattern": "^20"}
    assert takes(schema, "2024-02-29")
    assert not takes(schema, "2023-02-29")
    assert not takes(schema, "1996-02-29")


@pytest.mark.parametrize(
    ("schema", "text", "taken"),
    [
        ({"type": "integer"}, "9007199254740991", True),
        ({"type": "integer"}, "-9007199254740991", True),
        ({"type": "integer"}, "9007199254740992", False),
        ({"type": "integer", "maximum": 10**17}, "9007199254740992", True),
        ({"type": "integer", "minimum": 10**17}, "100000000000000001", True),
        ({"type": "integer", "multipleOf": 7, "minimum": 0}, "7" * 17, False),
        ({"type": ["integer", "null"]}, "1" * 30, False),
        ({"type": "number"}, "-3.123456789", True),
        ({"type": "number"}, "3.1234567890", False),
        ({"type": "number"}, "1000000000000000.5", False),
        ({"type": "number", "minimum": 0, "maximum": 1e-9}, "0.0000000000001", True),
        ({"type": "number", "minimum": 0.25}, "0.25", True),
        ({"type": "number", "multipleOf": 0.25}, "7.75", True),
        ({"type": "integer", "const": 10**17}, "1" + "0" * 17, True),
        ({"allOf": [{"type": "integer"}, {"const": 10**17}]}, "1" + "0" * 17, True),
        ({"allOf": [{"type": "number"}, {"multipleOf": 0.5}]}, "7.5", True),
        ({"allOf": [{"type": "number"}, {"multipleOf": 0.5}]}, "7.25", False),
    ],
)
def test_numbers_have_an_end_unless_the_schema_needs_more(schema, text, taken):
    assert takes(schema, text, as_text=True) is taken


def test_an_older_grammar_library_is_refused(monkeypatch):
    """vLLM pins 1.7, which lets any amount of white space through and refuses -1.25 as a number."""
    monkeypatch.setattr("selfextend_rag.output.schema.version", lambda _: "1.7.6")
    with pytest.raises(SchemaError, match=r"need llguidance 1\.9 or later, not 1\.7\.6"):
        json_grammar({"type": "number"})
    with pytest.raises(SchemaError, match=r"need llguidance 1\.9"):
        Grammars(byte_tokenizer()).compiled("start: /a/", (0,))
