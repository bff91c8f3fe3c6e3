"""What is asked: questions with their right answers, one by one or from a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfextend_rag.errors import SelfExtendError
from selfextend_rag.evals.metrics.words import answer_words


class QuestionsError(SelfExtendError, ValueError):
    """Questions that can't be read, or can't be asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and what is right.

    Args:
        question: the question alone.
        answers: right answers, each of which will do; none if that is not known.

    Raises:
        QuestionsError: the question is blank, or an answer holds no word and no number.
    """

    question: str
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise QuestionsError("a question is empty")
        for answer in self.answers:
            if not answer_words(answer):
                raise QuestionsError(
                    f"the right answer {answer!r} to {self.question!r} has no word or number that "
                    "could be looked for; give another, or none"
                )


def asked(questions: Sequence[str | Asked]) -> tuple[Asked, ...]:
    """Return questions as `Asked`, those that are texts without answers.

    Raises:
        QuestionsError: there are none, or one is blank.
    """
    if isinstance(questions, str):
        questions = [questions]
    if not questions:
        raise QuestionsError("there is no question; a comparison needs at least one")
    return tuple(Asked(each) if isinstance(each, str) else each for each in questions)


def read_questions(path: str | Path) -> list[Asked]:
    """Return the questions in a file, in UTF-8.

    * ``.csv`` and ``.tsv`` have a column ``question`` and, if answers are known, one or several
      columns ``answer``, any of which will do; other columns are not looked at.
    * ``.jsonl`` has an object in each line, ``.json`` a list of them: ``question``, and ``answer``,
      a text, or ``answers``, a list of texts.
    * Any other file has a question in each line, without answers.

    Raises:
        QuestionsError: it can't be read, or holds none; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise QuestionsError(f"can't read the questions in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise QuestionsError(f"{path} is not in UTF-8: {error.reason}; save it so") from error
    reader = _READERS.get(path.suffix.lower(), _lines)
    found = []
    for line, question, answers in reader(path, text):
        try:
            found.append(Asked(question, tuple(x for x in answers if x.strip())))
        except QuestionsError as error:
            raise QuestionsError(f"{path}, line {line}: {error}") from error
    if not found:
        raise QuestionsError(f"{path} has no question")
    return found


_Row = tuple[int, str, list[str]]  # line, question, answers


def _lines(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip(), []


def _table(path: Path, text: str) -> Iterator[_Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        head = [name.strip().lower() for name in next(rows, [])]
        if head.count("question") != 1:
            raise QuestionsError(
                f"{path} must have one column named question, and has {', '.join(head) or 'none'}"
            )
        answers = [place for place, name in enumerate(head) if name == "answer"]
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(head):
                raise QuestionsError(
                    f"{path}, line {rows.line_num}: {len(row)} cells, and the head has "
                    f"{len(head)}; put text that holds the separator in quotes"
                )
            yield rows.line_num, row[head.index("question")], [row[place] for place in answers]
    except csv.Error as error:
        raise QuestionsError(f"{path}, line {rows.line_num}: {error}") from error


def _json_lines(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _of_object(path, number, _parsed(path, line, number - 1))


def _json(path: Path, text: str) -> Iterator[_Row]:
    values = _parsed(path, text, 0)
    if not isinstance(values, list):
        raise QuestionsError(f"{path} must hold a list of questions, got {type(values).__name__}")
    for number, value in enumerate(values, 1):
        yield _of_object(path, number, value)


def _parsed(path: Path, text: str, before: int) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        line = before + getattr(error, "lineno", 1)
        raise QuestionsError(f"{path}, line {line}: no JSON: {error}") from error


def _of_object(path: Path, number: int, value: object) -> _Row:
    """Return what an object says; a question alone may be a text."""
    if isinstance(value, str):
        return number, value, []
    values = value if isinstance(value, dict) else {}
    question, answers = values.get("question"), values.get("answers", values.get("answer", []))
    given = [answers] if isinstance(answers, str) else answers
    texts = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
    if not isinstance(question, str) or given != texts:
        raise QuestionsError(
            f"{path}, number {number}: expected an object with a text as question, and a text as "
            f"answer or texts as answers, got {json.dumps(value, ensure_ascii=False)[:100]}"
        )
    return number, question, texts


_READERS: dict[str, Callable[[Path, str], Iterator[_Row]]] = {
    ".csv": _table,
    ".tsv": _table,
    ".jsonl": _json_lines,
    ".json": _json,
}
