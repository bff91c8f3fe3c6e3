"""Hold the bundled model to random JSON schemas and check every answer with ``jsonschema``.

    python benchmarks/structured.py [--schemas 200] [--json FILE]

Each schema is asked for at temperature 0 and 1. An answer that its token budget ended is counted as
such, and must have been reported as such; any other must be valid.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jsonschema
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from selfextend_rag import LongContextLLM
from tests.output.random_schemas import random_schema

DOCUMENT = "The pass key is 48213. Remember it. 48213 is the pass key."
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def outcome(answer, schema):
    """What became of one answer."""
    try:
        value = json.loads(answer.text)
        jsonschema.validate(value, schema, format_checker=FORMATS)
        valid = True
    except (ValueError, jsonschema.ValidationError):
        valid = False
    if answer.finish_reason == "stop":
        return "valid" if valid else "wrong"
    return "cut off, and reported" if answer.finish_reason == "length" else "wrong"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    llm = LongContextLLM.bundled(extension="always")
    reading = llm.read(DOCUMENT, max_new_tokens=options.max_new_tokens)
    outcomes = {0: Counter(), 1: Counter()}
    per_token = []
    for seed in range(options.schemas):
        schema = random_schema(seed)
        for temperature, counted in outcomes.items():
            answer = reading.ask(
                "What is the pass key?",
                json_schema=schema,
                temperature=temperature,
                seed=seed,
                max_new_tokens=options.max_new_tokens,
            )
            counted[outcome(answer, schema)] += 1
            if counted["wrong"]:
                print(json.dumps(schema, ensure_ascii=False), answer)
                counted["wrong, shown"] += counted.pop("wrong")
            if answer.usage.tokens_per_second:
                per_token.append(1e3 / answer.usage.tokens_per_second)
    report = {
        "schemas": options.schemas,
        "max_new_tokens": options.max_new_tokens,
        "outcomes": {f"temperature {t}": dict(c) for t, c in outcomes.items()},
        "milliseconds_per_token": statistics.median(per_token),
        "llguidance": version("llguidance"),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
