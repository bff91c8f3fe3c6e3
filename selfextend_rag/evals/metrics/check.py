"""Compares the metrics with a file of official scores: ``eval --check-metrics FILE``.

The file is a JSON object: the name of a metric, and a list of cases with what it is given and what
it must give; or an object with the list under ``cases``, and what all of them are given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from selfextend_rag.errors import SelfExtendError
from selfextend_rag.evals.metrics import infinitebench, leval, longbench, retrieval

Values = Mapping[str, Any]
_TOLERANCE = 1e-6  # official scores are written with six decimals


class MetricCasesError(SelfExtendError, ValueError):
    """A file of metric cases that can't be read."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A score that is not the official one.

    Args:
        metric: name of the metric.
        case: number of the case in its list, from 0.
        name: which of its results.
        expected: the official one.
        found: ours; None where there is no such metric or it can't be computed.
        reason: why there is none.
    """

    metric: str
    case: int
    name: str
    expected: object
    found: object
    reason: str = ""

    def explain(self) -> str:
        """Return the difference in one line."""
        found = self.reason or f"got {self.found!r}"
        return f"{self.metric} case {self.case}: {self.name} must be {self.expected!r}, {found}"


@dataclass(frozen=True, slots=True)
class MetricCheck:
    """How many cases there were, and what differs."""

    cases: int
    differences: tuple[Difference, ...]

    @property
    def agreeing(self) -> int:
        """Return the number of cases all of whose results are the official ones."""
        return self.cases - len({(each.metric, each.case) for each in self.differences})

    def explain(self) -> str:
        """Return what differs, a line each, and the count."""
        lines = [difference.explain() for difference in self.differences]
        return "\n".join([*lines, f"{self.agreeing} of {self.cases} cases agree"])


def _pair(metric: Callable[[str, str], float], answer: str = "reference") -> Any:
    return lambda case: {"score": metric(case["prediction"], case[answer])}


def _classification(case: Values) -> Values:
    classes = case["all_classes"]
    return {"score": longbench.classification(case["prediction"], case["reference"], classes)}


def _longbench_task(case: Values) -> Values:
    found = longbench.score(case["task"], case["prediction"], case["answers"], case["all_classes"])
    return {"score": round(100 * found, 2)}  # as the benchmark prints it


def _exam(case: Values) -> Values:
    given = case["subset"], case["prediction"], case["output"]
    read = leval.read(*given)
    names = {"read_as": read.prediction, "reference_as": read.reference}
    return {**names, "score": leval.exam(*given)}


def _judgement(case: Values) -> Values:
    loyalty, fact = leval.judgement(case["prediction"], case["output"])
    return {"loyalty": loyalty, "fact": fact}


def _ruler(case: Values) -> Values:
    given = case["prediction"], case["outputs"]
    everything, part = retrieval.string_match_all(*given), retrieval.string_match_part(*given)
    return {
        "string_match_all": round(100 * everything, 2),
        "string_match_part": round(100 * part, 2),
    }


def _babilong(case: Values) -> Values:
    names = ("prediction", "target", "question", "task")
    return {"score": retrieval.only_label(*(case[name] for name in names))}


def _infinitebench(task: str, case: Values) -> Values:
    return {"score": infinitebench.score(task, case["prediction"], case["answer"])}


def _mdqa(case: Values) -> Values:
    return {"score": retrieval.best_subspan_em(case["model_answer"], case["answers"])}


def _kv(case: Values) -> Values:
    return {"score": retrieval.holds_value(case["model_answer"], case["value"])}


_METRICS: dict[str, Callable[[Values], Values]] = {
    "longbench/qa_f1": _pair(longbench.qa_f1),
    "longbench/qa_f1_zh": _pair(longbench.qa_f1_zh),
    "longbench/rouge": _pair(longbench.rouge_l),
    "longbench/rouge_zh": _pair(longbench.rouge_l_zh),
    "longbench/classification": _classification,
    "longbench/retrieval": _pair(longbench.retrieval),
    "longbench/retrieval_zh": _pair(longbench.retrieval_zh),
    "longbench/count": _pair(longbench.share_of_numbers),
    "longbench/code_similarity": _pair(longbench.code_similarity),
    "longbench/task": _longbench_task,
    "mdqa/best_subspan_em": _mdqa,
    "kv/accuracy": _kv,
    "leval/exam": _exam,
    "leval/topic": lambda case: {
        "score": leval.exam("topic_retrieval_longchat", case["prediction"], case["output"])
    },
    "leval/sci_fi": _judgement,
    "leval/f1": _pair(leval.f1, "output"),
    "leval/rouge": lambda case: leval.rouge(case["prediction"], case["output"]),
    "longeval/lines": lambda case: {
        "score": retrieval.last_number(case["prediction"], case["expected_number"])
    },
    "ruler": _ruler,
    **{f"infinitebench/{task}": partial(_infinitebench, task) for task in infinitebench.METRICS},
    "babilong": _babilong,
}
# What a metric gives, by name; all else in a case is what it is given.
_RESULTS = frozenset(("score", "read_as", "reference_as", "loyalty", "fact", "rouge1", "rouge2"))
_RESULTS |= {"rougeL", "geometric_mean", "string_match_all", "string_match_part"}


def check_metrics(path: str | Path) -> MetricCheck:
    """Return what differs between the metrics and the official scores in a file.

    Raises:
        MetricCasesError: the file can't be read, or has another form.
        MissingMetricLibrary: a library that defines one of the metrics is not installed.
    """
    try:
        groups = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MetricCasesError(f"can't read metric cases from {path}: {error}") from error
    if not isinstance(groups, dict):
        raise MetricCasesError(f"{path} must hold a JSON object of metrics and their cases")
    cases, differences = 0, list[Difference]()
    for metric, group in groups.items():
        for number, case in enumerate(_cases(metric, group)):
            cases += 1
            differences += _differences(metric, number, case)
    return MetricCheck(cases, tuple(differences))


def _cases(metric: str, group: object) -> Iterator[Values]:
    shared: Values = {}
    if isinstance(group, dict):
        shared = {name: value for name, value in group.items() if name != "cases"}
        group = group.get("cases")
    if not isinstance(group, list) or not all(isinstance(case, dict) for case in group):
        raise MetricCasesError(f"{metric} must be a list of cases, each a JSON object")
    yield from ({**shared, **case} for case in group)


def _differences(metric: str, number: int, case: Values) -> Iterator[Difference]:
    expected = {name: case[name] for name in case if name in _RESULTS}
    if metric not in _METRICS:
        reason = f"but there is no such metric; there are {', '.join(_METRICS)}"
        yield Difference(metric, number, "score", expected.get("score"), None, reason)
        return
    if not expected:
        yield Difference(metric, number, "score", None, None, "but the case names no result")
    try:
        found = _METRICS[metric](case)
    except (KeyError, TypeError, ValueError) as error:  # a case of another form
        lacks = isinstance(error, KeyError)
        reason = f"but the case lacks {error}" if lacks else f"but it can't be scored: {error}"
        yield Difference(metric, number, "score", expected.get("score"), None, reason)
        return
    for name, value in expected.items():
        if name not in found:
            yield Difference(metric, number, name, value, None, "but the metric has no such result")
        elif not _equal(value, found[name]):
            yield Difference(metric, number, name, value, found[name])


def _equal(expected: object, found: object) -> bool:
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=0, abs_tol=_TOLERANCE)
    return expected == found
