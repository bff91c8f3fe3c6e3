"""Pass keys of 5, 10, 36 and 64 digits in noise, and needles in prose by length and depth.

The structure is that of Landmark Attention (arXiv 2305.16300), LongLM's examples (files of
``input`` and ``target``) and the heat maps of needles; the wording is this package's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Source, read_records
from selfextend_rag.evals.benchmarks.generated import haystack
from selfextend_rag.evals.benchmarks.generated.haystack import SyntheticOptions
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens
from selfextend_rag.evals.metrics import retrieval
from selfextend_rag.evals.prose import depths

DIGITS = (5, 10, 36, 64)
_LONGLM = "passkey_examples*.jsonl"
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
    keys = [
        Task(
            name=f"passkey/{digits}/{length}",
            metric="first_number",
            items=partial(_pass_keys, digits, length, options),
            score=_score_key,
        )
        for digits in DIGITS
        for length in options.lengths
    ]
    needles = [
        Task(
            name=f"needle/{length}",
            metric="names_needle",
            items=partial(_needles, length, options),
            score=_score_needle,
        )
        for length in options.lengths
    ]
    longlm = Task(
        name="passkey/longlm",
        metric="first_number",
        items=partial(_longlm, source),
        score=_score_key,
        prompt="official",
        available=partial(source.has, _LONGLM),
    )
    return [*keys, *needles, longlm]


def _pass_keys(
    digits: int, length: int, options: SyntheticOptions, tokens: Tokens
) -> Iterator[Item]:
    size, most = haystack.counted(tokens), digits + 8
    for sample in range(options.samples):
        for place, depth in enumerate(depths(options.depths)):
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
        for place, depth in enumerate(depths(options.depths)):
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
    for path in source.find(_LONGLM):  # one for each length
        for number, record in enumerate(read_records(path)):
            text, key = str(record["input"]), str(record["target"]).strip()
            gold = {"answer": key}  # asked without a line end: the text ends with its own
            question = Question("0", _ASKED, gold, 24, answer=key, evidence=(key,))
            id, groups = f"{path.stem}-{number}", {"characters": len(text)}
            yield Item(id, "", text, (question,), groups=groups)


def _score_key(question: Question, text: str) -> Scores:
    return {"score": 100 * retrieval.first_number(text, str(question.gold["answer"]))}


def _score_needle(question: Question, text: str) -> Scores:
    """Return the share of the needle's longer words (from four letters on) in the first line.

    In per cent. Empty lines before it do not count.
    """
    wanted = {word for word in str(question.gold["thing"]).split() if len(word) > 3}
    given = text.strip().partition("\n")[0].lower()
    return {"score": 100 * sum(word in given for word in wanted) / len(wanted)}
