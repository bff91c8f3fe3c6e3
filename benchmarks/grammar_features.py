# ruff: noqa: E501  a table: one feature a line
"""Features of JSON Schema, each with values that are valid for it and values that are not."""

from __future__ import annotations

A_OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CLOSED = {**A_OBJECT, "additionalProperties": False}

# name: (schema, valid values, invalid values)
FEATURES = {
    "type integer": ({"type": "integer"}, [0, -7, 123456], [1.5, "1", None]),
    "type number": ({"type": "number"}, [0, -1.25, 1e30], ["1", True]),
    "type boolean": ({"type": "boolean"}, [True, False], [0, "true"]),
    "type null": ({"type": "null"}, [None], [0, ""]),
    "type string": ({"type": "string"}, ["", "a b", 'q"\\\n'], [1, None]),
    "several types": ({"type": ["integer", "null"]}, [1, None], ["a", 1.5]),
    "unicode strings": ({"type": "string"}, ["é ß 漢字 😀", "ﷺ"], [1]),
    "unicode names": (
        {"type": "object", "properties": {"größe 漢": {"type": "integer"}},
         "required": ["größe 漢"], "additionalProperties": False},
        [{"größe 漢": 1}], [{"grosse": 1}, {}],
    ),
    "names with quotes": (
        {"type": "object", "properties": {'a"b\\c': {"type": "integer"}}, "required": ['a"b\\c'],
         "additionalProperties": False},
        [{'a"b\\c': 1}], [{"abc": 1}],
    ),
    "required": (A_OBJECT, [{"a": 1}], [{}, {"a": "x"}]),
    "optional properties": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "additionalProperties": False},
        [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}], [{"c": 1}, {"a": "x"}],
    ),
    "optional before required": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "required": ["b"], "additionalProperties": False},
        [{"b": 2}, {"a": 1, "b": 2}], [{"a": 1}, {}],
    ),
    "additionalProperties false": (CLOSED, [{"a": 1}], [{"a": 1, "b": 2}]),
    "additionalProperties schema": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"x": 1, "y": 2}], [{"x": "y"}],
    ),
    "additionalProperties open": (A_OBJECT, [{"a": 1, "zz": "y"}], [{"zz": 1}]),
    "additional next to a property": (
        {**A_OBJECT, "additionalProperties": {"type": "string"}},
        [{"a": 1, "b": "x"}], [{"a": 1, "b": 2}],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^x_": {"type": "integer"}},
         "additionalProperties": False},
        [{}, {"x_1": 1}], [{"y": 1}, {"x_1": "a"}],
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"},
         "additionalProperties": {"type": "integer"}},
        [{"ab": 1}], [{"AB": 1}],
    ),
    "minProperties": (
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        [{"a": 1, "b": 2}], [{}, {"a": 1}],
    ),
    "maxProperties": (
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        [{}, {"a": 1}], [{"a": 1, "b": 2}],
    ),
    "dependentRequired": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "additionalProperties": False, "dependentRequired": {"a": ["b"]}},
        [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}],
    ),
    "enum of strings": ({"enum": ["red", "green"]}, ["red", "green"], ["blue", "re"]),
    "enum of mixed values": ({"enum": [1, "a", None, [2], {"b": 3}]}, [1, "a", None, [2], {"b": 3}], [2, "b", {"b": 4}]),
    "enum under a type": ({"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    "const": ({"const": {"a": [1, "x"]}}, [{"a": [1, "x"]}], [{"a": [1, "y"]}, 1]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, [3, "ab"], ["abc", None]),
    "anyOf with properties": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "additionalProperties": False, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{}],
    ),
    "oneOf, disjoint": ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None]),
    "oneOf, overlapping": (
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]},
        [-1, 6], [3],
    ),
    "oneOf by a const": (
        {"oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "integer"}},
             "required": ["k", "x"], "additionalProperties": False},
            {"type": "object", "properties": {"k": {"const": "b"}, "y": {"type": "string"}},
             "required": ["k", "y"], "additionalProperties": False}]},
        [{"k": "a", "x": 1}, {"k": "b", "y": "z"}], [{"k": "a", "y": "z"}],
    ),
    "allOf": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6, "a"],
    ),
    "allOf of objects": (
        {"allOf": [A_OBJECT, {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}]},
        [{"a": 1, "b": "x"}], [{"a": 1}, {"b": "x"}, {"a": 1, "b": 2}],
    ),
    "not": ({"type": "integer", "not": {"const": 3}}, [1, 2], [3]),
    "if, then, else": (
        {"if": {"type": "integer"}, "then": {"minimum": 5}, "else": {"type": "string"}},
        [6, "a"], [3, None],
    ),
    "$ref to $defs": (
        {"$defs": {"x": CLOSED}, "type": "array", "items": {"$ref": "#/$defs/x"}},
        [[], [{"a": 1}]], [[{"b": 1}]],
    ),
    "$ref to definitions": (
        {"definitions": {"x": {"type": "integer"}}, "$ref": "#/definitions/x"}, [1], ["a"],
    ),
    "$ref into properties": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}},
         "required": ["a", "b"], "additionalProperties": False},
        [{"a": 1, "b": 2}], [{"a": 1, "b": "x"}],
    ),
    "$ref with keywords": (
        {"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x", "minimum": 5}, [5], [4],
    ),
    "$anchor": (
        {"$defs": {"x": {"$anchor": "it", "type": "integer"}}, "$ref": "#it"}, [1], ["a"],
    ),
    "recursion": (
        {"$defs": {"t": {"type": "object", "properties": {"v": {"type": "integer"},
                                                       "c": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
                         "required": ["v", "c"], "additionalProperties": False}},
         "$ref": "#/$defs/t"},
        [{"v": 1, "c": []}, {"v": 1, "c": [{"v": 2, "c": [{"v": 3, "c": []}]}]}],
        [{"v": 1, "c": [1]}, {"v": 1}],
    ),
    "recursion to the root": (
        {"type": "object", "properties": {"n": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
         "required": ["n"], "additionalProperties": False},
        [{"n": None}, {"n": {"n": None}}], [{"n": 1}, {}],
    ),
    "minLength": ({"type": "string", "minLength": 2}, ["ab", "漢字"], ["a", "漢", ""]),
    "maxLength": ({"type": "string", "maxLength": 2}, ["", "ab", "😀😀"], ["abc"]),
    "pattern, anchored": ({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}, ["AB1"], ["A1", "AB", "xAB1"]),
    "pattern, anywhere": ({"type": "string", "pattern": "b+"}, ["abc", "b"], ["ac", ""]),
    "pattern and length": ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["a", "aaa"], ["aaaa", "b"]),
    "pattern with \\d": ({"type": "string", "pattern": r"^\d{3}$"}, ["123"], ["12", "abc"]),
    "pattern with look-ahead": ({"type": "string", "pattern": "^(?!ab).*$"}, ["ba"], ["abc"]),
    "pattern with a quote": ({"type": "string", "pattern": '^["\\\\]+$'}, ['"', '\\"'], ["a"]),
    "minimum": ({"type": "integer", "minimum": 10}, [10, 1234], [9, -10, 1]),
    "maximum": ({"type": "integer", "maximum": 10}, [10, -1234], [11, 100]),
    "exclusive bounds": ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    "bounds of numbers": ({"type": "number", "minimum": -0.5, "maximum": 1.5}, [-0.5, 0, 1.49], [-0.6, 1.6, 15]),
    "multipleOf": ({"type": "integer", "multipleOf": 5}, [0, 15], [7]),
    "multipleOf, decimal": ({"type": "number", "multipleOf": 0.5}, [0.5, 2], [0.7]),
    "items": ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2]], [["a"], {}]),
    "minItems": ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [[1, 2], [1, 2, 3]], [[1], []]),
    "maxItems": ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
    "maxItems 0": ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, [[]], [[1]]),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        [[1, "a"]], [["a", 1], [1, "a", 2], [1]],
    ),
    "uniqueItems": ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[], [1, 2]], [[1, 1]]),
    "contains": ({"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 2}}, [[2], [1, 2]], [[1], []]),
    "format date": ({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-13-01", "x"]),
    "format date-time": ({"type": "string", "format": "date-time"}, ["2024-02-28T10:00:00Z"], ["2024-02-28", "x"]),
    "format time": ({"type": "string", "format": "time"}, ["10:00:00Z"], ["25:00:00Z", "x"]),
    "format email": ({"type": "string", "format": "email"}, ["a@b.org"], ["a", "a b@c"]),
    "format uuid": ({"type": "string", "format": "uuid"}, ["2f1b7a9e-8a4e-4a4c-9d6e-1f2b3c4d5e6f"], ["2f1b"]),
    "format ipv4": ({"type": "string", "format": "ipv4"}, ["10.0.0.1"], ["10.0.0.256", "x"]),
    "format ipv6": ({"type": "string", "format": "ipv6"}, ["::1"], ["12345::", "x"]),
    "format uri": ({"type": "string", "format": "uri"}, ["https://a.org/b?c=d"], ["not a uri"]),
    "format hostname": ({"type": "string", "format": "hostname"}, ["a.example.org"], ["a b"]),
    "format of no known name": ({"type": "string", "format": "shoe-size"}, [], ["anything at all"]),
    "nothing can be valid": ({"type": "integer", "minimum": 3, "maximum": 2}, [], [2, 3]),
    "keywords of other types": ({"type": "integer", "maxLength": 1}, [123], ["a"]),
    "no type": ({"maxLength": 2, "minimum": 5}, ["ab", 5, None, [1]], ["abc", 4]),
    "anything": ({}, [1, "a", None, {"a": [True]}], []),
    "nothing": ({"type": "array", "items": False}, [[]], [[1]]),
}  # fmt: skip

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
        "role": {"enum": ["author", "editor", "reader"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "age", "email", "role", "tags"],
    "additionalProperties": False,
}
# What is timed: schemas as applications write them, each with a value.
TIMED = [
    (_PERSON, {"name": "Ada Lovelace", "age": 36, "email": "ada@example.org", "role": "author",
               "tags": ["mathematics", "engines"]}),
    (
        {"$defs": {"person": _PERSON}, "type": "object",
         "properties": {"title": {"type": "string"}, "year": {"type": "integer"},
                        "people": {"type": "array", "items": {"$ref": "#/$defs/person"}, "minItems": 1}},
         "required": ["title", "year", "people"], "additionalProperties": False},
        {"title": "Notes on the analytical engine", "year": 1843,
         "people": [{"name": "Luigi Menabrea", "age": 33, "email": None, "role": "author", "tags": []}]},
    ),
    (FEATURES["recursion"][0], {"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}),
    (
        {"type": "object",
         "properties": {f"field_{i}": {"type": ["string", "null"]} for i in range(30)},
         "additionalProperties": False},
        {f"field_{i}": "some text here" for i in range(0, 30, 2)},
    ),
    (
        {"type": "object",
         "properties": {"when": {"type": "string", "format": "date-time"},
                        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                        "amount": {"type": "number", "minimum": 0, "maximum": 10000}},
         "required": ["when", "code", "amount"], "additionalProperties": False},
        {"when": "2024-02-28T10:00:00Z", "code": "ABC-1234", "amount": 99.5},
    ),
]  # fmt: skip
