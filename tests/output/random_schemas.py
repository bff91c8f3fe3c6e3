"""Random JSON schemas that can be satisfied, for tests and benchmarks; each seed gives one."""

from __future__ import annotations

from random import Random
from typing import Any

WORDS = ("name", "pass_key", "age", "größe", "is on", "tags", "city", 'a"b', "x/y", "漢字", "value")
PATTERNS = ("^[A-Z]{2,4}$", "^[0-9]{3}-[0-9]{2}$", "^(yes|no)$", "^[a-f0-9]{8}$", "^é{1,3}$")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")


def random_schema(seed: int) -> dict[str, Any]:
    """An object of nested objects, arrays, enums, numbers, strings, choices and references."""
    return _Schemas(Random(seed)).root()


class _Schemas:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.definitions: dict[str, Any] = {}

    def root(self) -> dict[str, Any]:
        schema = self.object(depth=3)
        if self.definitions:
            schema["$defs"] = self.definitions
        return schema

    def any(self, depth: int) -> Any:
        simple = [self.integer, self.number, self.string, self.enum, self.const, self.boolean]
        nested = [self.object, self.array, self.choice, self.reference, self.nullable]
        if depth <= 0 or self.random.random() < 0.5:
            return self.random.choice(simple)()
        return self.random.choice(nested)(depth - 1)

    def object(self, depth: int) -> dict[str, Any]:
        names = self.random.sample(WORDS, self.random.randint(1, 4))
        required = [name for name in names if self.random.random() < 0.7]
        schema = {
            "type": "object",
            "properties": {name: self.any(depth - 1) for name in names},
            "required": required,
        }
        if self.random.random() < 0.5:
            schema["additionalProperties"] = False
        return schema

    def array(self, depth: int) -> dict[str, Any]:
        low = self.random.randint(0, 2)
        if self.random.random() < 0.2:
            items = [self.any(depth - 1) for _ in range(low + 1)]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        high = low + self.random.randint(0, 2)
        return {"type": "array", "items": self.any(depth), "minItems": low, "maxItems": high}

    def choice(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.any(depth - 1) for _ in range(self.random.randint(2, 3))]}

    def nullable(self, depth: int) -> dict[str, Any]:
        if self.random.random() < 0.5:
            return {"type": [self.random.choice(["integer", "string", "boolean"]), "null"]}
        return {"anyOf": [self.any(depth - 1), {"type": "null"}]}

    def reference(self, depth: int) -> dict[str, Any]:
        name = f"d{len(self.definitions)}"
        if self.random.random() < 0.3:  # recursive, and it may end at any level
            more = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
            self.definitions[name] = {
                "type": "object",
                "properties": {"v": self.string(), "next": more},
                "required": ["v", "next"],
            }
        else:
            self.definitions[name] = {}
            self.definitions[name] = self.any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def integer(self) -> dict[str, Any]:
        low = self.random.randint(-1000, 1000)
        return self.random.choice(
            [
                {"type": "integer"},
                {"type": "integer", "minimum": low, "maximum": low + self.random.randint(0, 5000)},
                {"type": "integer", "exclusiveMinimum": low},
                {"type": "integer", "minimum": 0, "multipleOf": self.random.randint(2, 9)},
            ]
        )

    def number(self) -> dict[str, Any]:
        low = round(self.random.uniform(-100, 100), 2)
        bounded = {"type": "number", "minimum": low, "maximum": round(low + 50, 2)}
        return self.random.choice([{"type": "number"}, bounded])

    def string(self) -> dict[str, Any]:
        low = self.random.randint(0, 4)
        high = low + self.random.randint(0, 12)
        return self.random.choice(
            [
                {"type": "string", "maxLength": 20},
                {"type": "string", "minLength": low, "maxLength": high},
                {"type": "string", "pattern": self.random.choice(PATTERNS)},
                {"type": "string", "format": self.random.choice(FORMATS)},
            ]
        )

    def enum(self) -> dict[str, Any]:
        values = ["red", "grün", "a\nb", 7, 1.5, None, True, ["x"], {"k": "v"}]
        return {"enum": self.random.sample(values, self.random.randint(1, 4))}

    def const(self) -> dict[str, Any]:
        return {"const": self.random.choice(["fixed", 42, False, {"a": [1, 2]}])}

    def boolean(self) -> dict[str, Any]:
        return {"type": "boolean"}
