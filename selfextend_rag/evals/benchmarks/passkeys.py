"""Pass keys of 5, 10, 36 and 64 digits in noise, and needles in prose by length and depth.

The structure is that of Landmark Attention (arXiv 2305.16300), LongLM's examples (files of
``input`` and ``target``) and the heat maps of needles; the wording is this package's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks import haystack
from selfextend_rag.evals.benchmarks.files import Source
from selfextend_rag.evals.benchmarks.haystack import SyntheticOptions
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens
from selfextend_rag.evals.metrics import retrieval

DIGITS = (5, 10, 36, 64)
_LONGLM = ("passkey_examples.jsonl", "*passkey*.jsonl")
_ASKED = "What is the pass key? The pass key is "
_BEFORE = (
    "One important fact is hidden in a lot of text that says nothing. Find it and memorize it.\n"
)
_GIVEN = "The best thing to do in {place} is to {thing}."
_PLACES = ("Brindleford", "Castlemere", "Dunhollow", "Elmsworth", "Fernbury", "Greyhaven")
_THINGS = (
    "eat a plum tart on the old pier at noon",
    "ride the blue tram to the lighthouse",
    "listen to the clockmaker's choir",
    "row a green boat around the mill island",
)


def tasks(source: Source, options: SyntheticOptions) -> list[Task]:
    """Return the tasks at each length, and LongLM's examples."""
    found = [
        _task(f"passkey/{digits}/{length}", partial(_pass_keys, digits, length, options))
        for digits in DIGITS
        for length in options.lengths
    ]
    found += [
        _task(f"needle/{length}", partial(_needles, length, options), "names_needle")
        for length in options.lengths
    ]
    longlm = _task("passkey/longlm", partial(_longlm, source))
    return [*found, longlm]


def _task(name: str, items: partial[Iterator[Item]], metric: str = "first_number") -> Task:
    longlm = name.endswith("longlm")
    return Task(
        name=name,
        metric=metric,
        items=items,
        score=_score_needle if metric == "names_needle" else _score_key,
        prompt="official" if longlm else "own",
        available=_never_without(items) if longlm else lambda: True,
    )


def _never_without(items: partial[Iterator[Item]]) -> partial[bool]:
    source: Source = items.args[0]
    return partial(source.has, *_LONGLM)


def _depths(options: SyntheticOptions) -> list[float]:
    count = options.depths
    return [0.5] if count == 1 else [number / (count - 1) for number in range(count)]


def _pass_keys(
    digits: int, length: int, options: SyntheticOptions, tokens: Tokens
) -> Iterator[Item]:
    size, most = haystack.counted(tokens), digits + 8
    for sample in range(options.samples):
        for place, depth in enumerate(_depths(options)):
            rng = random.Random(f"passkey {digits} {length} {options.seed} {sample} {depth}")
            key = haystack.digits(rng, digits)
            fact = f"The pass key is {key}. Remember it. {key} is the pass key."

            def text(units: int, fact: str = fact, depth: float = depth) -> str:
                return "\n".join(haystack.hidden([haystack.NOISE] * units, [fact], [depth]))

            document = haystack.fitted(
                text, lambda x: size(f"{_BEFORE}{x}\n{_ASKED}"), length - most
            )
            question = Question(
                "0", f"\n{_ASKED}", {"answer": key}, most, answer=key, evidence=(key,)
            )
            groups = {"length": length, "depth": round(depth, 2)}
            yield Item(f"{sample}-{place}", _BEFORE, document, (question,), groups=groups)


def _needles(length: int, options: SyntheticOptions, tokens: Tokens) -> Iterator[Item]:
    size, most = haystack.counted(tokens), 48
    before = "Read this text and answer the question after it.\n\n"
    for sample in range(options.samples):
        for place, depth in enumerate(_depths(options)):
            rng = random.Random(f"needle {length} {options.seed} {sample} {depth}")
            town, thing = rng.choice(_PLACES), rng.choice(_THINGS)
            start = rng.randrange(len(haystack.sentences()))
            fact = _GIVEN.format(place=town, thing=thing)
            after = f"\n\nQuestion: What is the best thing to do in {town}?\nAnswer:"

            def text(units: int, fact: str = fact, depth: float = depth, start: int = start) -> str:
                return " ".join(haystack.hidden(haystack.prose(units, start), [fact], [depth]))

            frame = size(before + after)
            document = haystack.fitted(text, size, length - most - frame)
            gold = {"thing": thing}
            question = Question("0", after, gold, most, answer=f" {fact}", evidence=(fact,))
            groups = {"length": length, "depth": round(depth, 2)}
            yield Item(f"{sample}-{place}", before, document, (question,), groups=groups)


def _longlm(source: Source, tokens: Tokens) -> Iterator[Item]:
    for number, record in enumerate(source.records("passkey/longlm", *_LONGLM)):
        text, key = str(record["input"]), str(record["target"]).strip()
        question = Question("0", f"\n{_ASKED}", {"answer": key}, 24, answer=key, evidence=(key,))
        yield Item(str(number), "", text, (question,), groups={"characters": len(text)})


def _score_key(question: Question, text: str) -> Scores:
    return {"score": 100 * retrieval.first_number(text, str(question.gold["answer"]))}


def _score_needle(question: Question, text: str) -> Scores:
    """Return the share of the needle's longer words (from four letters on) in the first line.

    In per cent. Empty lines before it do not count.
    """
    wanted = {word for word in str(question.gold["thing"]).split() if len(word) > 3}
    given = text.strip().partition("\n")[0].lower()
    return {"score": 100 * sum(word in given for word in wanted) / len(wanted)}
