"""LongEval: a number in one of many lines, and the first of many topics.

The records hold whole prompts. Source: github.com/DachengLi1/LongChat.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from selfextend_rag.evals.benchmarks.files import Record, Source
from selfextend_rag.evals.benchmarks.items import Item, Question, Scores, Task, Tokens
from selfextend_rag.evals.metrics import retrieval

LINES = (200, 300, 400, 500, 600, 680, 700, 800, 900, 1000, 1100, 1200, 1350)
TOPICS = (1, 2, 3, 4, 5, 10, 15, 20, 25, 30)
_ENDS = ("\n\nNow the record is over", "\n Now the record ends", "Now the record")


def tasks(source: Source) -> list[Task]:
    """Return the tasks by number of lines and of topics."""
    return [
        *(_task(source, "lines", count) for count in LINES),
        *(_task(source, "topics", count) for count in TOPICS),
    ]


def _task(source: Source, kind: str, count: int) -> Task:
    path = f"{kind}/testcases/{count}_{kind}.jsonl"
    files = (path, f"evaluation/{path}", f"{count}_{kind}.jsonl")
    lines = kind == "lines"
    return Task(
        name=f"longeval/{kind}/{count}",
        metric="last_number" if lines else "names_topic",
        items=partial(_items, source, kind, count, files),
        score=_score_line if lines else _score_topic,
        prompt="official",
        available=partial(source.has, *files),
        note="" if lines else "the benchmark asks a ChatGPT model; here the topic must be named",
    )


def _items(
    source: Source, kind: str, count: int, files: tuple[str, ...], tokens: Tokens
) -> Iterator[Item]:
    for number, record in enumerate(source.records(f"longeval/{kind}/{count}", *files)):
        yield _item(kind, count, number, record)


def _item(kind: str, count: int, number: int, record: Record) -> Item:
    prompt: str = record["prompt"]
    place = next((at for end in _ENDS if (at := prompt.rfind(end)) > 0), len(prompt) // 2)
    gold: dict[str, object]
    if kind == "lines":
        gold, most = {"expected_number": int(record["expected_number"])}, 100
        answer = str(record["expected_number"])
        index = record.get("random_idx")
        depth = {} if not index else {"depth": round(index[1] / max(1, count - 1), 1)}
    else:
        gold, most, depth = {"topic": record["topics"][0]}, 50, {}
        answer = record["topics"][0]
    question = Question("0", prompt[place:], gold, most, answer=answer, evidence=(answer,))
    return Item(
        id=str(number),
        before="",
        document=prompt[:place],
        questions=(question,),
        groups={kind: count, **depth},
    )


def _score_line(question: Question, text: str) -> Scores:
    return {"score": 100 * retrieval.last_number(text, int(str(question.gold["expected_number"])))}


def _score_topic(question: Question, text: str) -> Scores:
    return {"score": 100 * retrieval.names_topic(text, str(question.gold["topic"]))}
