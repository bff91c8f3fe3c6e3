"""RULER: thirteen synthetic tasks, generated at the lengths that are asked for.

The structure is the benchmark's; words, prose and wording are this package's, so figures are not
comparable to published ones digit by digit. Files that the official generators wrote
(``TASK/validation.jsonl``) are used where the folder has them. Source: arXiv 2404.06654,
github.com/NVIDIA/RULER.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Record, Source
from selfextend_rag.evals.benchmarks.generated import haystack
from selfextend_rag.evals.benchmarks.generated.haystack import SyntheticOptions
from selfextend_rag.evals.benchmarks.generated.ruler_makers import (
    MAKERS,
    Maker,
    Parts,
    common_words,
)
from selfextend_rag.evals.benchmarks.generated.ruler_qa import question_maker
from selfextend_rag.evals.benchmarks.items import (
    BenchmarkError,
    Item,
    Question,
    Scores,
    Task,
    Tokens,
)
from selfextend_rag.evals.metrics import retrieval

QA = {"qa_1": "squad", "qa_2": "hotpotqa"}
QA_TOKENS = 32


def tasks(source: Source, options: SyntheticOptions) -> list[Task]:
    """Return the thirteen tasks at each length, and those whose files the folder has."""
    found = [_generated(name, length, options) for length in options.lengths for name in MAKERS]
    for length in options.lengths:
        found += [_qa(source, name, length, options) for name in QA]
    return [*found, *(_official(source, name) for name in (*MAKERS, *QA))]


def _generated(name: str, length: int, options: SyntheticOptions) -> Task:
    make, most = MAKERS[name]
    return Task(
        name=f"ruler/{name}/{length}",
        metric="string_match_all",
        items=partial(_made, name, make, length, most, options),
        score=partial(_score, retrieval.string_match_all),
    )


def _made(
    name: str, make: Maker, length: int, most: int, options: SyntheticOptions, tokens: Tokens
) -> Iterator[Item]:
    size = haystack.counted(tokens)
    for sample in range(options.samples):
        rng = random.Random(f"{name} {length} {options.seed} {sample}")
        if name == "cwe" and length < 4096:  # as the benchmark does
            make = partial(common_words, often=6, seldom=1)
        # fwe needs enough words for three that differ in number
        least = 5 if name == "fwe" else 1
        parts = haystack.fitted(make(rng), lambda x: size(x.whole), length - most, least=least)
        yield _item(str(sample), parts, most, {"length": length})


def _item(id: str, parts: Parts, most: int, groups: dict[str, str | int | float]) -> Item:
    gold = {"outputs": list(parts.outputs)}
    answer = ", ".join(parts.outputs)
    question = Question(
        "0",
        parts.after,
        gold,
        most,
        begin=parts.begin,
        answer=answer,
        query=parts.after.rpartition("Question: ")[2].strip(),
        evidence=parts.outputs,
    )
    return Item(id, parts.before, parts.document, (question,), groups=groups)


def _score(match: Callable[[str, list[str]], float], question: Question, text: str) -> Scores:
    outputs: list[str] = question.gold["outputs"]  # type: ignore[assignment]  # as the task made it
    return {"score": 100 * match(retrieval.printable(text), outputs)}


def _qa(source: Source, name: str, length: int, options: SyntheticOptions) -> Task:
    files = (f"{QA[name]}.json", f"json/{QA[name]}.json")

    def items(tokens: Tokens) -> Iterator[Item]:
        size = haystack.counted(tokens)
        paths = source.find(*files)
        if not paths:
            raise BenchmarkError(f"ruler/{name} needs {files[0]} in the folder of data (--data)")
        make = question_maker(paths[0])
        for sample in range(options.samples):
            rng = random.Random(f"{name} {length} {options.seed} {sample}")
            build = make(rng)
            text = haystack.fitted(build, lambda x: size("".join(x[:4])), length - QA_TOKENS)
            yield _item(str(sample), Parts(*text), QA_TOKENS, {"length": length})

    return Task(
        name=f"ruler/{name}/{length}",
        metric="string_match_part",
        items=items,
        score=partial(_score, retrieval.string_match_part),
        available=partial(source.has, *files),
    )


def _official(source: Source, name: str) -> Task:
    """Return a task whose items the benchmark's own generator wrote."""
    files = (f"{name}/validation.jsonl", f"data/{name}/validation.jsonl")
    match = retrieval.string_match_part if name in QA else retrieval.string_match_all
    most = QA_TOKENS if name in QA else MAKERS[name][1]

    def items(tokens: Tokens) -> Iterator[Item]:
        for number, record in enumerate(source.records(f"ruler/{name}/official", *files)):
            yield _of_record(number, record, most)

    return Task(
        name=f"ruler/{name}/official",
        metric=match.__name__,
        items=items,
        score=partial(_score, match),
        prompt="official",
        available=partial(source.has, *files),
    )


def _of_record(number: int, record: Record, most: int) -> Item:
    text: str = record["input"]
    place = max(text.rfind("\n"), len(text) // 2)
    gold = {"outputs": list(record["outputs"])}
    answer = ", ".join(record["outputs"])
    begin = record.get("answer_prefix", "")
    evidence = tuple(record["outputs"])
    question = Question(
        "0", text[place:], gold, most, begin=begin, answer=answer, evidence=evidence
    )
    groups = {"length": record["length"]} if "length" in record else {}
    # "index" of its needle tasks is a place in the text, and not the record's
    return Item(str(number), "", text[:place], (question,), groups=groups)
