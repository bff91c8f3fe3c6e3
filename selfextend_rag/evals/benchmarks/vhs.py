"""Visual Haystacks: yes or no, about one picture or a few among many others.

A single needle is put at each tenth of the document, as the official program does; several are
shuffled, which that program does without a seed and this one with the record's number as its seed.
The wording around the question is this package's. Source: arXiv 2407.13766,
github.com/visual-haystacks/vhs_benchmark.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from selfextend_rag.documents import DocumentError, Picture
from selfextend_rag.documents.pictures.reader import picture_of
from selfextend_rag.evals.benchmarks.files import Record, Source, read_records
from selfextend_rag.evals.benchmarks.items import (
    BenchmarkError,
    Item,
    Question,
    Scores,
    Task,
    Tokens,
)
from selfextend_rag.evals.metrics import retrieval

MAX_NEW_TOKENS = 64
COUNTS = ("oracle", "2", "3", "5", "10", "20", "50", "100", "500", "1000", "10000")
"""How many pictures the official files have; the oracle's are the needles alone."""

_KINDS = {"single": "single_needle", "multi": "multi_needle"}
_SETS = ("VHs_full/{kind}/", "{kind}/VHs_large/", "{kind}/")  # the second was an earlier release's
_FILE = "visual_haystack_{count}.json"
_ABOVE = 5  # folders over a file of questions in which its pictures are looked for
_KEPT = 512  # pictures, of which the places of a needle have almost all in common
_TENTHS = 10
_YES_NO = ("yes", "no")

_BEFORE = "Look at these pictures, then answer a question about them.\n"
_ASKED = "\n\nQuestion: {question}{form}\nAnswer:"
_FORM = " Answer yes or no."

Pictures = Callable[[str], Picture]


def tasks(source: Source) -> list[Task]:
    """Return the tasks by kind of needle and number of pictures, those of other numbers too."""
    found = []
    for kind, folder in _KINDS.items():
        begin, end = _FILE.split("{count}")
        names = [path.name for path in source.find(*_places(folder, _FILE.format(count="*")))]
        there = {name.removeprefix(begin).removesuffix(end): None for name in names}
        more = sorted(there.keys() - set(COUNTS), key=lambda x: (len(x), x))
        found += [_task(source, kind, count) for count in (*COUNTS, *more)]
    return found


def _places(folder: str, file: str) -> list[str]:
    return [x.format(kind=folder) + file for x in _SETS]


def _task(source: Source, kind: str, count: str) -> Task:
    patterns = _places(_KINDS[kind], _FILE.format(count=count))
    note = "each needle at each tenth" if kind == "single" else "needles shuffled by a fixed seed"
    return Task(
        name=f"vhs/{kind}/{count}",
        metric="accuracy",
        items=partial(_items, source, kind, patterns),
        score=_score,
        further=_further,
        available=lambda: bool(source.find(*patterns)),
        note=note,
    )


def _items(source: Source, kind: str, patterns: Sequence[str], tokens: Tokens) -> Iterator[Item]:
    found = source.find(*patterns)
    if not found:
        raise BenchmarkError(f"there is no {' or '.join(patterns)} in {source.folder}")
    look = lru_cache(_KEPT)(partial(_picture, found[0]))
    for number, record in enumerate(read_records(found[0])):
        question, needles, others = _asked(record)
        pictures = _looked_up(record, look)
        if kind == "multi":
            names = [*needles, *others]
            random.Random(f"vhs {number}").shuffle(names)
            groups = {"pictures": len(names), "needles": len(needles)}
            yield _item(str(number), "", pictures(names), question, groups)
            continue
        total = len(needles) + len(others)
        for place in range(0, total, max(total // _TENTHS, 1)):
            names = [*others[:place], *needles, *others[place:]]
            depth = _TENTHS * place // total / _TENTHS
            yield _item(
                f"{number}/{place}",
                str(number),
                pictures(names),
                question,
                {"pictures": total, "depth": depth},
            )


def _item(
    id: str,
    record: str,
    pictures: tuple[Picture, ...],
    question: Question,
    groups: Mapping[str, int | float],
) -> Item:
    return Item(id, _BEFORE, "", (question,), groups=groups, pictures=pictures, record=record)


def _asked(record: Record) -> tuple[Question, list[str], list[str]]:
    """Return a record's question, and the names of its needles and of its other pictures."""
    lists = record["pos_image"], record["neg_image"]
    if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise BenchmarkError(f"{record.where}: pos_image and neg_image must be lists of names")
    needles, others = lists
    if not needles:
        raise BenchmarkError(f"{record.where}: pos_image names no picture")
    try:
        asked, answered = (str(turn["value"]) for turn in record["conversations"][:2])
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"{record.where}: conversations must be a question and its answer, each with a value"
        ) from error
    gold = answered.strip().lower()
    yes_no = gold in _YES_NO
    question = " ".join(asked.replace("<image>", " ").split())
    return (
        Question(
            id="0",
            text=_ASKED.format(question=question, form=_FORM if yes_no else ""),
            gold={"answer": gold},
            max_new_tokens=MAX_NEW_TOKENS,
            answer=gold.capitalize(),
            query=question,
            others=tuple(x.capitalize() for x in _YES_NO if x != gold) if yes_no else (),
        ),
        needles,
        others,
    )


def _looked_up(record: Record, look: Pictures) -> Callable[[Sequence[str]], tuple[Picture, ...]]:
    """Return what gives a record's pictures by their names."""

    def found(names: Sequence[str]) -> tuple[Picture, ...]:
        try:
            return tuple(map(look, names))
        except (BenchmarkError, DocumentError) as error:
            raise BenchmarkError(f"{record.where}: {error}") from error

    return found


def _picture(questions: Path, name: str) -> Picture:
    """Return a picture, looked for from the folder of a file of questions upwards."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BenchmarkError(f"the picture {name} is not named from the folder of the data set on")
    above = list(questions.resolve().parents)[:_ABOVE]
    for folder in (x for parent in above for x in (parent, parent / "coco")):
        if (file := folder / path).is_file():
            return replace(picture_of(file.read_bytes(), path.name), name=path.name)
    raise BenchmarkError(
        f"the picture {name} is not there; it was looked for in {above[0]} and {len(above) - 1} "
        "folders above it, and in their coco; put the pictures of COCO next to the questions, as "
        "dataset/coco and dataset/VHs_qa"
    )


def _score(question: Question, text: str) -> Scores:
    gold = str(question.gold["answer"])
    scores = {"score": 100 * retrieval.says_word(text, gold)}
    if gold in _YES_NO:
        said = max(retrieval.says_word(text, word) for word in _YES_NO)
        scores |= {"compliance": 100 * said, "chance": 100 / len(_YES_NO)}
    return scores


def _further(rows: Sequence[Scores]) -> Scores:
    """Return how often the answer is yes or no at all, and what chance scores."""
    names = [name for name in ("compliance", "chance") if all(name in row for row in rows)]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}
