"""What rows come to: scores with intervals, differences between columns on the same items.

The same rows give the same figures, on any machine and however often the run that made them was
broken off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfextend_rag.evals.benchmarks.items import Scores, Task
from selfextend_rag.evals.suite.bootstrap import (
    LEVEL,
    RESAMPLES,
    Items,
    Statistic,
    bootstrap,
    bounds_of,
    flat,
    interval,
    means_of,
    paired,
)
from selfextend_rag.evals.suite.rows import Column, Results, Row

Values = dict[str, object]
Scored = Mapping[Column, Items]


def summary_of(results: Results) -> Values:
    """Return all figures of a run as JSON values: by task and column, compared, and averaged."""
    scored = {task.name: _scored(task, results) for task in results.tasks}
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "columns": [str(column) for column in results.columns],
        "tasks": {task.name: _task_summary(task, results, scored) for task in results.tasks},
        "averages": _averages(results, scored),
    }


def _scored(task: Task, results: Results) -> Scored:
    """Return the scores of each column's items; none of those that it did not answer."""
    return {
        column: _by_item(results.rows[task.name, column])
        for column in results.columns
        if (task.name, column) in results.rows
    }


def _task_summary(task: Task, results: Results, scored: Mapping[str, Scored]) -> Values:
    columns = scored[task.name]
    return {
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "prompt": task.prompt,
        "note": task.note,
        "columns": {
            str(column): _figures(task, results.rows[task.name, column], items)
            for column, items in columns.items()
        },
        "differences": _differences([task], scored),
    }


def _by_item(rows: Iterable[Row]) -> dict[str, list[Scores]]:
    """Return the scores of each document, all variants of one record together."""
    found: dict[str, list[Scores]] = {}
    for row in rows:
        if row.status == "answered":
            found.setdefault(row.record or row.item, []).append(row.scores)
    return found


def _figures(task: Task, rows: Sequence[Row], items: Items) -> Values:
    counts = {
        status: sum(row.status == status for row in rows)
        for status in ("answered", "refused", "skipped")
    }
    answered = [row for row in rows if row.status == "answered"]
    figures: Values = {**counts, "items": len(items)}
    if not answered:
        return figures
    scores = [row.scores for row in answered]
    return {
        **figures,
        "score": task.summary(scores),
        "interval": interval(items, task.summary),
        **task.further(scores),
        **_likelihoods(items),
        "prompt_tokens": sum(row.prompt_tokens for row in answered) / len(answered),
        "cut_tokens": sum(row.cut_tokens for row in answered) / len(answered),
        "group_sizes": sorted({int(row.settings.get("group_size", 1)) for row in answered}),
        "unfinished": sum(row.finish_reason == "length" for row in answered),
        "groups": _by_group(task, answered),
    }


def _having(items: Items, name: str) -> Items:
    """Return the rows that have a figure, by item."""
    known = {item: [row for row in rows if name in row] for item, rows in items.items()}
    return {item: rows for item, rows in known.items() if rows}


def _likelihoods(items: Items) -> Values:
    """Return what `LIKELIHOODS` has of what was measured, with intervals."""
    found: Values = {}
    for name, statistic in LIKELIHOODS.items():
        if known := _having(items, name):
            found[name] = statistic(flat(known.values()))
            found[f"{name}_interval"] = interval(known, statistic)
    if "likeliest" in found:
        chances = [row["by_chance"] for row in flat(_having(items, "by_chance").values())]
        found["by_chance"] = math.fsum(chances) / len(chances)
    return found


def gold_nll(rows: Sequence[Scores]) -> float:
    """Return the negative log-likelihood of the right answers of rows, in nats a token."""
    tokens = math.fsum(row["gold_tokens"] for row in rows)
    return math.fsum(row["gold_nll"] for row in rows) / tokens


def likeliest(rows: Sequence[Scores]) -> float:
    """Return in how many of a hundred rows the right answer is likelier than wrong ones."""
    return math.fsum(row["likeliest"] for row in rows) / len(rows)


LIKELIHOODS = {"gold_nll": gold_nll, "likeliest": likeliest}
"""What is measured besides scores, on request; see ``--likelihood``."""


def _by_group(task: Task, rows: Sequence[Row]) -> Values:
    """Return the score at each value of what the results are broken down by, and their number."""
    found: Values = {}
    for name in dict.fromkeys(name for row in rows for name in row.groups):
        values = sorted({row.groups[name] for row in rows if name in row.groups}, key=_order)
        parts = {
            str(value): [row.scores for row in rows if row.groups.get(name) == value]
            for value in values
        }
        if len(parts) > 1:
            found[name] = {
                value: {"score": task.summary(part), "answered": len(part)}
                for value, part in parts.items()
            }
    return found


def _order(value: object) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (math.inf, str(value))


def _differences(tasks: Sequence[Task], scored: Mapping[str, Scored]) -> list[Values]:
    """Return how columns differ from plain attention and from SelfExtend, on common items.

    Of several tasks it is the difference of the means over them.
    """
    columns = [x for x in scored[tasks[0].name] if all(x in scored[task.name] for task in tasks)]
    found = []
    for base in columns:
        if base.method not in ("plain", "selfextend"):
            continue
        for column in columns:
            if column == base or (
                column.method in ("plain", "selfextend")
                and columns.index(column) < columns.index(base)
            ):
                continue  # of two such columns, the later is compared with the earlier
            pairs = [_common(scored[task.name], column, base) for task in tasks]
            if all(first for first, _ in pairs):
                compared = _difference([task.summary for task in tasks], pairs)
                more = _compared_likelihoods(pairs)
                found.append({"column": str(column), "over": str(base), **compared, **more})
    return found


def _compared_likelihoods(pairs: Sequence[tuple[Items, Items]]) -> Values:
    """Return differences of what `LIKELIHOODS` has, where both columns measured it in each task."""
    found: Values = {}
    for name, statistic in LIKELIHOODS.items():
        known = [(_having(first, name), _having(second, name)) for first, second in pairs]
        if all(first and first.keys() == second.keys() for first, second in known):
            found[name] = _difference([statistic] * len(known), known)
    return found


def _common(scored: Scored, column: Column, base: Column) -> tuple[Items, Items]:
    """Return the scores of two columns on the items that both answered, all variants of them."""
    first, second = scored[column], scored[base]
    common = [x for x in second if x in first and len(first[x]) == len(second[x])]
    return {x: first[x] for x in common}, {x: second[x] for x in common}


def _difference(statistics: Sequence[Statistic], pairs: Sequence[tuple[Items, Items]]) -> Values:
    points, values = [], []
    for number, (statistic, (first, second)) in enumerate(zip(statistics, pairs, strict=True)):
        one, two = (statistic(flat(items.values())) for items in (first, second))
        points.append(one - two)
        values.append(paired(first, second, statistic, stream=number))
    return {
        "items": sum(len(first) for first, _ in pairs),
        "difference": math.fsum(points) / len(points),
        "interval": bounds_of(means_of(values)),
    }


def _averaged(name: str, metric: object) -> str:
    """Return under which name a task is averaged with others; empty if it is not.

    Benchmarks report such means: LongBench's of its tasks, L-Eval's of those of one metric, RULER's
    and BABILong's of one length.
    """
    benchmark, *_, last = name.split("/")
    if benchmark in ("ruler", "babilong"):
        return f"{benchmark} at {last}"
    return {"longbench": "longbench", "leval": f"leval, {metric}"}.get(benchmark, "")


def _averages(results: Results, scored: Mapping[str, Scored]) -> Values:
    """Return means over tasks, of the columns that have a score in all of them."""
    members: dict[str, list[Task]] = {}
    for task in results.tasks:
        if under := _averaged(task.name, task.metric):
            members.setdefault(under, []).append(task)
    found = {name: _average(below, results, scored) for name, below in members.items()}
    return {
        name: average
        for name, average in found.items()
        if len(members[name]) > 1 and average["columns"]
    }


def _average(tasks: Sequence[Task], results: Results, scored: Mapping[str, Scored]) -> Values:
    columns = [x for x in results.columns if all(scored[task.name].get(x) for task in tasks)]
    return {
        "tasks": len(tasks),
        "columns": {str(column): _mean_over(tasks, column, scored) for column in columns},
        "intervals": {
            str(column): bounds_of(
                means_of(
                    [
                        bootstrap(scored[task.name][column], task.summary, stream=number)
                        for number, task in enumerate(tasks)
                    ]
                )
            )
            for column in columns
        },
        "left_out": {
            str(column): sum(
                row.status != "answered"
                for task in tasks
                for row in results.rows[task.name, column]
            )
            for column in columns
        },
        "differences": _differences(tasks, scored),
    }


def _mean_over(tasks: Sequence[Task], column: Column, scored: Mapping[str, Scored]) -> float:
    values = [task.summary(flat(scored[task.name][column].values())) for task in tasks]
    return math.fsum(values) / len(values)


def table(summary: Mapping[str, object]) -> str:
    """Return the scores of a summary as lines of text, a task each."""
    columns: list[str] = summary["columns"]  # type: ignore[assignment]  # as summarise made it
    tasks: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]]
    tasks = summary["tasks"]  # type: ignore[assignment]  # as summarise made it
    head = ["task", *columns]
    lines = [
        [name, *(_cell(task["columns"].get(x)) for x in columns)] for name, task in tasks.items()
    ]
    averages: Mapping[str, Mapping[str, Any]]
    averages = summary["averages"]  # type: ignore[assignment]  # as summarise made it
    for name, average in averages.items():
        lines.append([f"{name}, mean", *(_mean_cell(average, x) for x in columns)])
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def _mean_cell(average: Mapping[str, Any], column: str) -> str:
    if column not in average["columns"]:
        return "-"
    bounds, missing = average["intervals"][column], average["left_out"][column]
    around = "" if bounds is None else f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    left_out = f" ({missing} left out)" if missing else ""
    return f"{average['columns'][column]:.2f}{around}{left_out}"


def _cell(figures: Mapping[str, object] | None) -> str:
    if figures is None:
        return "-"
    missing = int(str(figures["refused"])) + int(str(figures["skipped"]))
    left_out = f" ({missing} left out)" if missing else ""
    if "score" not in figures:
        return f"none{left_out}"
    bounds: tuple[float, float] | None = figures["interval"]  # type: ignore[assignment]  # as summarise made it
    around = "" if bounds is None else f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    chance = f" (chance {figures['chance']:.0f})" if "chance" in figures else ""
    gold = f", gold NLL {figures['gold_nll']:.3f}" if "gold_nll" in figures else ""
    if "likeliest" in figures:
        gold += f", likeliest {figures['likeliest']:.0f}% (chance {figures['by_chance']:.0f}%)"
    score = f"{figures['score']:.2f}{around}{chance}"
    return f"{score}, {figures['answered']} answers{gold}{left_out}"
