"""Runs tasks by methods, item by item; what is in the file of rows already is not run again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata

from torch import OutOfMemoryError

from selfextend_rag.errors import (
    ContextBudgetExceeded,
    DocumentError,
    MemoryBudgetExceeded,
    UnsupportedModelError,
)
from selfextend_rag.evals.benchmarks.cutting import cut, official_length
from selfextend_rag.evals.benchmarks.items import BenchmarkError, Item, Scores, Task
from selfextend_rag.evals.benchmarks.pg19 import scores_of
from selfextend_rag.evals.methods.base import (
    Answered,
    Input,
    LoadedModel,
    Method,
    MethodError,
    digest,
)
from selfextend_rag.evals.suite.rows import Column, Results, Row, RowFile

_CANNOT = (ContextBudgetExceeded, DocumentError, UnsupportedModelError, MethodError)


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """How a suite is run.

    Args:
        limit: how many items of each task; all by default.
        inputs: the forms of prompts to run; by default each method's own.
        cut_tokens: the length that benchmarks' rules cut to; by default the published one of the
            model's window, or what it leaves.
        answer_tokens: the longest answer, where a benchmark allows a longer one. What models that
            follow no prompts write is of no use, and takes long.

    Raises:
        ValueError: a number is not positive.
    """

    limit: int | None = None
    inputs: tuple[Input, ...] = ()
    cut_tokens: int | None = None
    answer_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("cut_tokens", 2), ("answer_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value}")


Report = Callable[[Task, int, Results], None]
"""Is called for each item that is done: the task, the item's number from 1, and all so far."""


def run_suite(
    tasks: Sequence[Task],
    methods: Sequence[Method],
    loaded: LoadedModel,
    file: RowFile,
    options: SuiteOptions,
    report: Report = lambda task, number, results: None,
) -> Results:
    """Return the rows of all tasks by all methods, those computed now or before.

    Args:
        tasks: what is asked.
        methods: what answers.
        loaded: the model.
        file: where rows are kept.
        options: how.
        report: called for each item.

    Raises:
        BenchmarkError: data can't be read, two items of a task have one id, or a question can't be
            scored by its gold.
    """
    results = Results(list(tasks))
    for task in tasks:
        items = itertools.islice(task.items(loaded), options.limit)
        ids: set[str] = set()
        for number, item in enumerate(items, 1):
            if item.id in ids:  # their rows would be one document's
                raise BenchmarkError(f"{task.name} has two items of the id {item.id!r}")
            ids.add(item.id)
            asked = _shortened(item, options.answer_tokens)
            for method in methods:
                _run_item(task, asked, method, loaded, file, options, results)
            report(task, number, results)
    return results


def _shortened(item: Item, most: int | None) -> Item:
    """Return an item whose answers are no longer than that."""
    if most is None:
        return item
    questions = (
        replace(question, max_new_tokens=min(most, question.max_new_tokens))
        for question in item.questions
    )
    return replace(item, questions=tuple(questions))


def _run_item(
    task: Task,
    item: Item,
    method: Method,
    loaded: LoadedModel,
    file: RowFile,
    options: SuiteOptions,
    results: Results,
) -> None:
    done: dict[Input, list[Row]] = {}
    for column, form, given in _forms(task, item, method, loaded, options):
        # a prompt that no rule cuts is the same in both forms, and is run once
        if form not in done:
            done[form] = _rows(task, item, given, method, form, loaded, file, results)
        results.add(task, column, done[form])


def _forms(
    task: Task, item: Item, method: Method, loaded: LoadedModel, options: SuiteOptions
) -> Iterator[tuple[Column, Input, Item | None]]:
    """Yield the columns of a method, and the item as it is read for each, None if it is skipped."""
    for column in columns_of(task, method, options):
        if column.input == "whole" or task.cut is None:
            yield column, "whole", item
            continue
        most = max(question.max_new_tokens for question in item.questions)
        length = options.cut_tokens or official_length(task.cut, loaded.window, most)
        shorter = cut(item, task.cut, length, loaded)
        yield column, "whole" if shorter is item else "cut", shorter


def columns_of(task: Task, method: Method, options: SuiteOptions) -> list[Column]:
    """Return the forms in which a method is given the prompts of a task."""
    forms = options.inputs or method.inputs
    if task.cut is None:  # there is no rule to cut by
        forms = ("whole",)
    return [Column(method.name, form) for form in forms]


def _rows(
    task: Task,
    item: Item,
    given: Item | None,
    method: Method,
    form: Input,
    loaded: LoadedModel,
    file: RowFile,
    results: Results,
) -> list[Row]:
    fingerprint = _fingerprint(task, item if given is None else given, method, loaded)
    rows = file.get((task.name, item.id, method.name, form, fingerprint))
    if rows is not None:
        results.found += len(rows)
        return rows
    common = _Common(task, item, method.name, form, fingerprint)
    if given is None:
        rows = common.without("skipped", "too long for the benchmark's rule for this window")
    else:
        _check_golds(task, given)
        try:
            rows = _computed(task, item, given, method, loaded, common)
        except (MemoryBudgetExceeded, OutOfMemoryError) as error:
            # not kept: another day or machine may have more
            return common.without("refused", str(error))
    file.append(rows)
    results.computed += len(rows)
    return rows


def _check_golds(task: Task, item: Item) -> None:
    """Refuse golds that no answer can be scored by, before answers are computed and lost."""
    for question in item.questions:
        try:
            task.score(question, "")
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            where = f"{task.name}, item {item.id}, question {question.id}"
            raise BenchmarkError(f"{where}: can't be scored by {question.gold}: {error}") from error


def _fingerprint(task: Task, item: Item, method: Method, loaded: LoadedModel) -> str:
    return digest(
        {
            "package": metadata.version("selfextend-rag"),
            "model": loaded.fingerprint,
            "method": method.identity(),
            "metric": task.metric,
            "item": item.to_values(),
        }
    )


@dataclass(frozen=True, slots=True)
class _Common:
    """What all rows of an item have in common."""

    task: Task
    item: Item
    method: str
    form: Input
    fingerprint: str

    @property
    def questions(self) -> list[str]:
        return [question.id for question in self.item.questions] or [""]

    def row(self, question: str, status: str, **more: object) -> Row:
        values: dict[str, object] = {
            "task": self.task.name,
            "item": self.item.id,
            "question": question,
            "method": self.method,
            "input": self.form,
            "fingerprint": self.fingerprint,
            "of": len(self.questions),
            "status": status,
            "groups": dict(self.item.groups),
            "record": self.item.record,
        }
        return Row(**{**values, **more})  # type: ignore[arg-type]  # fields by name

    def without(self, status: str, reason: str) -> list[Row]:
        return [self.row(question, status, reason=reason) for question in self.questions]


def _computed(
    task: Task, item: Item, given: Item, method: Method, loaded: LoadedModel, common: _Common
) -> list[Row]:
    try:
        if task.predicts:
            return [_predicted(given, method, common)]
        answers = method.answers(given)
    except MemoryBudgetExceeded:
        raise
    except _CANNOT as error:
        return common.without("refused", str(error))
    fewer = 0
    if given is not item:
        before, after = (loaded.encode(x.before + x.document) for x in (item, given))
        fewer = max(0, len(before) - len(after))
    rows = []
    for question, answer in zip(given.questions, answers, strict=True):
        scores: Scores = {**task.score(question, answer.text), **_likelihood(answer)}
        rows.append(
            common.row(
                question.id,
                "answered",
                scores=dict(scores),
                text=answer.text,
                gold=dict(question.gold),
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                new_tokens=answer.new_tokens,
                cut_tokens=fewer,
                settings=dict(answer.settings),
                seconds=answer.seconds,
                read_seconds=answer.read_seconds,
            )
        )
    return rows


def _likelihood(answer: Answered) -> Scores:
    """Return the likelihood of the right answer, as a sum and the tokens that it is of.

    And, where wrong ones were measured, whether it is likelier than each of them, in per cent, and
    in how many of a hundred chance would have it.
    """
    if not answer.gold_nlls:
        return {}
    found, others = math.fsum(answer.gold_nlls), [math.fsum(x) for x in answer.other_nlls]
    scores = {"gold_nll": found, "gold_tokens": float(len(answer.gold_nlls))}
    if others:
        scores["likeliest"] = 100.0 * (found < min(others))
        scores["by_chance"] = 100 / (1 + len(others))
    return scores


def _predicted(item: Item, method: Method, common: _Common) -> Row:
    found = method.predicted(item)
    return common.row(
        "",
        "answered",
        scores=dict(scores_of(found.nlls, found.words)),
        prompt_tokens=len(found.nlls),
        settings=dict(found.settings),
        seconds=found.seconds,
    )


def check_needs(tasks: Iterable[Task]) -> None:
    """Import the libraries that the tasks' metrics need, before anything runs.

    Raises:
        MissingMetricLibrary: one is not installed.
    """
    from selfextend_rag.evals.metrics.words import metric_library

    for name in sorted({name for task in tasks for name in task.needs}):
        metric_library(name)
