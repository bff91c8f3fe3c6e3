"""Compare grammar libraries: llguidance and xgrammar, on the same schemas and vocabularies.

    python benchmarks/grammars.py [--json FILE] [--repeats N]

xgrammar is no dependency of this package; ``pip install xgrammar`` to compare. Measured is:

* Right: each feature of JSON Schema has values that are valid and values that are not. A feature is
  "right" if the compiled grammar takes every valid value and none of the others, "refused" if the
  library says that it can't enforce it, "narrow" if it rules out a valid value, and "wrong" if it
  takes an invalid one.
* Fast: the time to compile a schema (the vocabulary being known), and the time of one token mask
  while a valid value is written token by token; on the bundled vocabulary of 2,048 tokens and on a
  synthetic byte-level one of 151,936.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from random import Random

import torch
from grammar_features import FEATURES, TIMED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

BUNDLED = Path(__file__).parents[1] / "selfextend_rag" / "bundled"
LARGE = 151_936


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class LLGuidance:
    name = "llguidance"

    def __init__(self, tokenizer):
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self.matcher = LLMatcher
        self.tokenizer = from_tokenizer(tokenizer)
        self.end = tokenizer.eos_token_id

    def compiled(self, schema):
        grammar = self.matcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": "[ ]?"}
        )
        matcher = self.matcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def started(self, compiled):
        return compiled.deep_copy()

    def takes(self, compiled, ids):
        matcher = self.started(compiled)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def mask(self, matcher):
        return matcher.compute_bitmask()

    def accept(self, matcher, token):
        return matcher.consume_token(token)


class XGrammar:
    name = "xgrammar"

    def __init__(self, tokenizer):
        import xgrammar

        self.library = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bits = xgrammar.allocate_token_bitmask(1, len(tokenizer))
        self.end = tokenizer.eos_token_id

    def compiled(self, schema):
        return self.compiler.compile_json_schema(compact(schema), strict_mode=False)

    def started(self, compiled):
        return self.library.GrammarMatcher(compiled)

    def takes(self, compiled, ids):
        matcher = self.started(compiled)
        return all(matcher.accept_token(token) for token in ids) and matcher.accept_token(self.end)

    def mask(self, matcher):
        return matcher.fill_next_token_bitmask(self.bits)

    def accept(self, matcher, token):
        return matcher.accept_token(token)


def large_tokenizer():
    """A byte-level vocabulary of pseudo-words, digits and punctuation as JSON has it; seeded."""
    random = Random(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    merges = []

    def add(word):
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary and len(vocabulary) < LARGE:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)

    for text in (
        '":',
        '",',
        '"}',
        '{"',
        '["',
        '":"',
        '":{"',
        '","',
        '"},{"',
        "ĠĠĠĠĠĠĠĠ",
        "ĊĠĠĠĠ",
        "]}",
    ):
        add(text)
    for number in range(1000):
        add(str(number))
    marks = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for first in range(0xCE, 0xF0):  # letters beyond ASCII, as bytes written by the alphabet
        for second in range(0x80, 0xC0):
            marks = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            add(
                "".join(
                    p for p, _ in marks.pre_tokenize_str(chr((first & 0x1F) << 6 | second & 0x3F))
                )
            )
    while len(vocabulary) < LARGE:
        syllables = "".join(
            random.choice("bcdfghjklmnpqrstvwz")
            + random.choice("aeiou")
            + random.choice(["", *"lnrst"])
            for _ in range(random.randint(1, 4))
        )
        add(random.choice(["", "Ġ", "Ġ"]) + random.choice([syllables, syllables.capitalize()]))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@dataclass
class Result:
    library: str
    version: str
    installed_mb: float
    right: int = 0
    narrow: int = 0
    refused: int = 0
    wrong: int = 0
    features: dict = field(default_factory=dict)
    speed: dict = field(default_factory=dict)


def verdict(library, tokenizer, schema, valid, invalid):
    try:
        compiled = library.compiled(schema)
    except Exception as error:  # noqa: BLE001 - each library has its own
        return "refused", str(error).strip().splitlines()[0][:120]
    ids = {
        compact(v): tokenizer.encode(compact(v), add_special_tokens=False) for v in valid + invalid
    }
    taken = [compact(v) for v in invalid if library.takes(compiled, ids[compact(v)])]
    if taken:
        return "wrong", f"takes {taken[0]}"
    left = [compact(v) for v in valid if not library.takes(compiled, ids[compact(v)])]
    return ("narrow", f"rules out {left[0]}") if left else ("right", "")


def timed(library, tokenizer, repeats):
    """Medians over the schemas: milliseconds to compile, microseconds per mask; and the worst."""
    compiles, masks = [], []
    for schema, value in TIMED:
        ids = tokenizer.encode(compact(value), add_special_tokens=False)
        for _ in range(repeats):
            start = time.perf_counter()
            compiled = library.compiled(schema)
            compiles.append(time.perf_counter() - start)
            matcher = library.started(compiled)
            for token in ids:
                start = time.perf_counter()
                library.mask(matcher)
                masks.append(time.perf_counter() - start)
                assert library.accept(matcher, token)
    return {
        "compile_ms_median": statistics.median(compiles) * 1e3,
        "compile_ms_worst": max(compiles) * 1e3,
        "mask_us_median": statistics.median(masks) * 1e6,
        "mask_us_mean": statistics.fmean(masks) * 1e6,
        "mask_us_99th": statistics.quantiles(masks, n=100)[98] * 1e6,
    }


def installed_mb(name):
    files = distribution(name).files or ()
    return sum(f.size or 0 for f in files) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    tokenizers = {
        "bundled, 2048 tokens": AutoTokenizer.from_pretrained(BUNDLED),
        f"synthetic, {LARGE} tokens": large_tokenizer(),
    }
    kinds = [kind for kind in (LLGuidance, XGrammar) if find_spec(kind.name)]
    results = {
        kind.name: Result(kind.name, version(kind.name), installed_mb(kind.name)) for kind in kinds
    }
    if "xgrammar" in results:
        results["xgrammar"].installed_mb += installed_mb("apache-tvm-ffi")
    for label, tokenizer in tokenizers.items():
        libraries = [kind(tokenizer) for kind in kinds]
        for library in libraries:
            found = results[library.name]
            found.speed[label] = timed(library, tokenizer, options.repeats)
            if not found.features:
                for name, (schema, valid, invalid) in FEATURES.items():
                    word, why = verdict(library, tokenizer, schema, valid, invalid)
                    setattr(found, word, getattr(found, word) + 1)
                    found.features[name] = f"{word}: {why}" if why else word
    report = {
        "machine": f"{platform.machine()}, {platform.processor() or 'cpu'}, one thread",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "features": len(FEATURES),
        "results": [asdict(result) for result in results.values()],
    }
    for result in results.values():
        counts = {word: getattr(result, word) for word in ("right", "narrow", "refused", "wrong")}
        print(f"{result.library} {result.version}, {result.installed_mb:.1f} MB: {counts}")
        for label, figures in result.speed.items():
            print(f"  {label}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
        for name, word in result.features.items():
            if word != "right":
                print(f"    {name}: {word}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
