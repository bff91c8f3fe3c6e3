"""The same model, the same questions: from whole documents, and from passages that BM25 retrieves.

It prints what the model saw, what it answered and how long that took, and draws a chart of right
answers and seconds. Whether an answer is right is looked up in a CSV file (question, answer):
the answer has to contain that text.

    python examples/compare_retrieval.py
    python examples/compare_retrieval.py contracts/ --questions asked.csv --chart compared.svg
    python examples/compare_retrieval.py contracts/ --questions asked.csv -k 4 -k 16 --model MODEL

The bundled model looks facts up that are asked for in the words of the text, which is where BM25
is at its best. What whole documents are for, facts in other words and answers from several places,
needs a real model and your own questions.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfextend_rag import Document, LongContextLLM, read_documents, word_relevance

HERE = Path(__file__).parent / "documents"
DOCUMENTS, QUESTIONS = HERE / "handbook.pdf", HERE / "handbook.questions.csv"
WORDS = 80  # of a passage, at least: paragraphs are joined until they have so many


@dataclass(frozen=True)
class Result:
    """What a way of answering made of a question."""

    way: str
    question: str
    answer: str
    right: bool
    tokens: int
    seconds: float


class Whole:
    """Answers from the whole documents, which are read once; the first answer pays for that."""

    name = "whole"

    def __init__(self, llm: LongContextLLM, documents: Sequence[Document], asked: list[str]):
        self._read = lambda: llm.read(documents, question=asked)
        self._reading = None

    def ask(self, question: str) -> tuple[str, int]:
        """Return the answer, and how many tokens of documents the model saw."""
        self._reading = self._reading or self._read()
        return self._reading.ask(question).text, self._reading.plan.prompt_tokens


class Retrieved:
    """Answers from the passages with the most and the rarest words of the question."""

    def __init__(self, llm: LongContextLLM, documents: Sequence[Document], k: int):
        self._llm = llm
        self._passages = [each for document in documents for each in passages(document.text)]
        self._k = min(k, len(self._passages))
        self.name = f"BM25, {self._k}"

    def ask(self, question: str) -> tuple[str, int]:
        """Return the answer, and how many tokens of passages the model saw."""
        scores = word_relevance(question, self._passages)
        best = sorted(range(len(scores)), key=lambda number: scores[number])[-self._k :]
        found = [self._passages[number] for number in sorted(best)]  # in the order of the documents
        reading = self._llm.read(found, question=question)
        return reading.ask(question).text, reading.plan.prompt_tokens


def passages(text: str) -> list[str]:
    """Return the paragraphs of a text, short ones joined with what follows; nothing is left out."""
    found = [""]
    for paragraph in text.split("\n\n"):
        found[-1] += ("\n\n" if found[-1] else "") + paragraph
        if len(found[-1].split()) >= WORDS:
            found.append("")
    return [each for each in found if each.strip()]


def compare(ways: Sequence[Whole | Retrieved], expected: dict[str, str]) -> list[Result]:
    """Return what each way made of each question, and print it."""
    results = []
    for question, answer in expected.items():
        print(question)
        for way in ways:
            started = time.perf_counter()
            said, tokens = way.ask(question)
            seconds, right = time.perf_counter() - started, answer.lower() in said.lower()
            results.append(Result(way.name, question, said, right, tokens, seconds))
            mark = "right" if right else "wrong"
            print(f"  {way.name:8} {tokens:6} tokens {seconds:6.2f} s  {mark}  {said.strip()}")
    return results


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a chart of right answers and of seconds, by way; SVG or PNG, by the path's end."""
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(each.way for each in results))
    of = {way: [each for each in results if each.way == way] for way in ways}
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(ways)), layout="constrained")
    right, seconds = figure.subplots(1, 2, sharey=True)
    right.barh(ways, [sum(each.right for each in of[way]) for way in ways], color="#4051b5")
    right.set(title="right answers", xlim=(0, len(of[ways[0]])))
    seconds.barh(ways, [sum(each.seconds for each in of[way]) for way in ways], color="#e0884b")
    seconds.set(title="seconds for all questions, reading included")
    right.invert_yaxis()
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    """Ask every question in every way, print the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=[DOCUMENTS], help="documents")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, help="CSV: question, answer")
    parser.add_argument("-k", type=int, action="append", help="passages to retrieve; repeatable")
    parser.add_argument("--chart", type=Path, default=Path("compare_retrieval.svg"))
    parser.add_argument("--model", help="hub id or folder; by default the small bundled one")
    args = parser.parse_args(arguments)

    with args.questions.open(encoding="utf-8", newline="") as file:
        expected = {row["question"]: row["answer"] for row in csv.DictReader(file)}
    documents = [each for path in args.paths for each in read_documents(path).documents]
    llm = LongContextLLM.from_pretrained(args.model) if args.model else LongContextLLM.bundled()
    ways: list[Whole | Retrieved] = [Whole(llm, documents, list(expected))]
    ways += [Retrieved(llm, documents, k) for k in args.k or (1, 3)]
    results = compare(ways, expected)
    draw(results, args.chart)
    for way in ways:
        own = [each for each in results if each.way == way.name]
        print(f"{way.name}: {sum(each.right for each in own)} of {len(own)} right")
    print(f"chart: {args.chart}")


if __name__ == "__main__":
    main()
