"""RULER's questions over documents, from the files of SQuAD 2.0 or HotpotQA."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from selfextend_rag.evals.benchmarks.items import BenchmarkError

_SHORT = "Answer in as few words as you can, with nothing else."

Made = tuple[str, str, str, str, tuple[str, ...]]


def question_maker(path: Path) -> Callable[[random.Random], Callable[[int], Made]]:
    """Return what draws a question, and then builds its prompt of a number of other documents.

    Raises:
        BenchmarkError: the file has neither form.
    """
    documents, questions = _loaded(path)

    def draw(rng: random.Random) -> Callable[[int], Made]:
        question, answers, own = rng.choice(questions)
        others = [place for place in range(len(documents)) if place not in own]
        rng.shuffle(others)
        seed = rng.random()

        def build(units: int) -> Made:
            places = [*own, *(others[number % len(others)] for number in range(units))]
            random.Random(seed).shuffle(places)
            text = "\n\n".join(
                f"Document {number}:\n{documents[place]}" for number, place in enumerate(places, 1)
            )
            before = f"Answer the question from these documents. {_SHORT}\n\n"
            asked = (
                f"Answer the question from the documents above. {_SHORT}\n\nQuestion: {question}"
            )
            after = f"\n\n{asked}"
            return before, text, after, " Answer:", answers

        return build

    return draw


Questions = list[tuple[str, tuple[str, ...], tuple[int, ...]]]


def _loaded(path: Path) -> tuple[list[str], Questions]:
    """Return the documents, and questions with their answers and the documents they are from."""
    try:
        data = json.loads(path.read_text("utf-8"))
        return _squad(data["data"]) if isinstance(data, dict) else _hotpot(data)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BenchmarkError(f"{path} is neither of SQuAD's nor of HotpotQA's form") from error


def _squad(articles: list[dict[str, list[dict[str, object]]]]) -> tuple[list[str], Questions]:
    documents: dict[str, int] = {}
    questions: Questions = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            place = documents.setdefault(str(paragraph["context"]), len(documents))
            asked: list[dict[str, list[dict[str, str]]]] = paragraph["qas"]  # type: ignore[assignment]  # as in SQuAD's and HotpotQA's files
            for qa in asked:
                if not qa.get("is_impossible"):
                    answers = tuple(dict.fromkeys(answer["text"] for answer in qa["answers"]))
                    questions.append((str(qa["question"]), answers, (place,)))
    return list(documents), questions


def _hotpot(records: list[dict[str, object]]) -> tuple[list[str], Questions]:
    documents: dict[str, int] = {}
    questions: Questions = []
    for record in records:
        places = []
        contexts: list[tuple[str, list[str]]] = record["context"]  # type: ignore[assignment]  # as in SQuAD's and HotpotQA's files
        for title, lines in contexts:
            text = f"{title}\n{''.join(lines)}"
            places.append(documents.setdefault(text, len(documents)))
        questions.append((str(record["question"]), (str(record["answer"]),), tuple(places)))
    return list(documents), questions
