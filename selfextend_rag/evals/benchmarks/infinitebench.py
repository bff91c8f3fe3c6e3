"""InfiniteBench: twelve tasks on texts of 100 thousand tokens and more.

Prompts are this package's wording of the structure that the benchmark has for base models: what to
do, the text, the question, and how an answer begins. Source: arXiv 2402.13718,
github.com/OpenBMB/InfiniteBench.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Record, Source
from selfextend_rag.evals.benchmarks.items import (
    BenchmarkError,
    Item,
    Question,
    Scores,
    Task,
    Tokens,
)
from selfextend_rag.evals.metrics import infinitebench

HUB = "xinrongzhang2022/InfiniteBench"
_HIDDEN = (
    "One important fact is hidden in a lot of text that says nothing. Find it, and memorize it."
)
# What comes before the text, what after it, and how the answer begins.
PROMPTS: dict[str, tuple[str, str, str]] = {
    "passkey": (_HIDDEN, "{input}", "\nThe pass key is"),
    "number_string": (_HIDDEN, "{input}", "\nThe sequence of digits is"),
    "kv_retrieval": ("Find the value of a key in this JSON object.", "{input}", ""),
    "longbook_sum_eng": ("Summarize this book.", "", "Summary:"),
    "longbook_choice_eng": (
        "Read this book and answer the question.",
        "Question: {input}\n{options}",
        "\nThe letter of the right answer is",
    ),
    "longbook_qa_eng": (
        "Read this book and answer the question in as few words as you can.",
        "Question: {input}",
        "\nAnswer:",
    ),
    "longbook_qa_chn": ("请阅读这本书，然后简要地回答问题。", "问题：{input}", "\n答案："),
    "longdialogue_qa_eng": (
        "In this script, the name of a character is replaced by $$MASK$$ in one place. Guess who "
        "it is.",
        "",
        "The name that $$MASK$$ replaces is most likely",
    ),
    "math_find": ("Find one number in this list.", "{input}", ""),
    "math_calc": (
        "Write the value after each operation of an expression.\n\nExpression: 2 + 5 - 3\n"
        "Values: [2, 7, 4]\n\nExpression: 9 - 4 + 1 - 2\nValues: [9, 5, 6, 4]\n\nExpression:",
        "",
        "Values:",
    ),
    "code_run": ("Here are Python functions.", "Work out the value of {call}.", "\n{call} is"),
    "code_debug": (
        "In this Python code, one of the functions has a deliberate error that ends it.",
        "Which one?\n{options}",
        "\nThe right option is:",
    ),
}
MAX_NEW_TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    **dict.fromkeys(("longbook_choice_eng", "longbook_qa_eng", "longbook_qa_chn"), 40),
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30_000,
    **dict.fromkeys(("code_run", "code_debug"), 5),
}
"""The longest answer of each task, as in the official ``DATA_NAME_TO_MAX_NEW_TOKENS``."""

_OPTIONS = frozenset(("longbook_choice_eng", "code_debug"))
_IN_THE_TEXT = frozenset(("passkey", "number_string", "kv_retrieval", "longbook_qa_eng"))
_NEEDS = {"longbook_sum_eng": ("rouge_score",)}
_CALL = re.compile(r"func_\d+\(-?\d+\)")


def tasks(source: Source) -> list[Task]:
    """Return the twelve tasks."""
    return [_task(source, name) for name in PROMPTS]


def _task(source: Source, name: str) -> Task:
    files = tuple(f"{folder}{name}.jsonl" for folder in ("InfiniteBench/", "data/", ""))
    return Task(
        name=f"infinitebench/{name}",
        metric=infinitebench.METRICS[name].__name__,
        items=partial(_items, source, name, files),
        score=partial(_score, name),
        cut="middle",
        needs=_NEEDS.get(name, ()),
        available=partial(source.has, *files, hub=HUB),
    )


def _items(source: Source, name: str, files: tuple[str, ...], tokens: Tokens) -> Iterator[Item]:
    records = source.records(f"infinitebench/{name}", *files, hub=HUB, split=name)
    for number, record in enumerate(records):
        yield _item(name, number, record)


def _item(name: str, number: int, record: Record) -> Item:
    before, after, begin = PROMPTS[name]
    asked: str = record["input"]
    answers = _answers(name, record)
    filled = {"{input}": asked.strip()}
    if name in _OPTIONS:
        filled["{options}"] = "\n".join(
            f"{letter}. {option}" for letter, option in zip("ABCD", record["options"], strict=True)
        )
    if name == "code_run":
        filled["{call}"] = _call(record)
    for place, text in filled.items():
        after, begin = after.replace(place, text), begin.replace(place, text)
    question = Question(
        id="0",
        text=f"\n\n{after}",
        gold={"answers": answers},
        max_new_tokens=MAX_NEW_TOKENS[name],
        begin=begin,
        answer=str(answers[-1] if name in _OPTIONS else answers[0]),
        query=asked,
        evidence=tuple(map(str, answers)) if name in _IN_THE_TEXT else (),
    )
    return Item(str(number), f"{before}\n\n", record["context"], (question,))


def _call(record: Record) -> str:
    found = _CALL.search(record["input"])
    if found is None:
        raise BenchmarkError(f"{record.where}: the input calls no function, as func_1(2) does")
    return found[0]


def _answers(name: str, record: Record) -> list[object]:
    """Return what is right; of options, its text and its letter."""
    given = record["answer"]
    answers = list(given) if isinstance(given, list | tuple) else [given]
    if not answers:
        raise BenchmarkError(f"{record.where}: has no right answer")
    if name not in _OPTIONS or len(answers) == 2:  # or both are given
        return answers
    options = list(record["options"])
    if answers[0] not in options:
        raise BenchmarkError(f"{record.where}: the answer {answers[0]!r} is none of the options")
    return [answers[0], "ABCD"[options.index(answers[0])]]


def _score(name: str, question: Question, text: str) -> Scores:
    return {"score": 100 * infinitebench.score(name, text, question.gold["answers"])}
