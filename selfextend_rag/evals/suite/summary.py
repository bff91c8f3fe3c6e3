"""What rows come to: scores with intervals, differences between columns on the same items.

Questions on one document are not independent, so whole items are drawn. The same rows give the
same figures, on any machine and however often the run that made them was broken off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from selfextend_rag.evals.benchmarks.items import Scores, Task, mean_score
from selfextend_rag.evals.suite.rows import Row
from selfextend_rag.evals.suite.run import Column, Results

RESAMPLES = 1000
LEVEL = 0.95
_SEED = 20240101

Values = dict[str, object]
Statistic = Callable[[Sequence[Scores]], float]
Items = Mapping[str, Sequence[Scores]]


def summary_of(results: Results) -> Values:
    """Return all figures of a run as JSON values: by task and column, compared, and averaged."""
    tasks = {task.name: _task_summary(task, results) for task in results.tasks}
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "columns": [str(column) for column in results.columns],
        "tasks": tasks,
        "averages": _averages(tasks),
    }


def _task_summary(task: Task, results: Results) -> Values:
    rows = {
        column: results.rows[task.name, column]
        for column in results.columns
        if (task.name, column) in results.rows
    }
    scored = {column: _by_item(found) for column, found in rows.items()}
    return {
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "prompt": task.prompt,
        "note": task.note,
        "columns": {str(column): _figures(task, rows[column], scored[column]) for column in rows},
        "differences": _differences(task, scored),
    }


def _by_item(rows: Iterable[Row]) -> dict[str, list[Scores]]:
    found: dict[str, list[Scores]] = {}
    for row in rows:
        if row.status == "answered":
            found.setdefault(row.item, []).append(row.scores)
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
        **_gold(items),
        "prompt_tokens": sum(row.prompt_tokens for row in answered) / len(answered),
        "cut_tokens": sum(row.cut_tokens for row in answered) / len(answered),
        "group_sizes": sorted({int(row.settings.get("group_size", 1)) for row in answered}),
        "unfinished": sum(row.finish_reason == "length" for row in answered),
        "groups": _by_group(task, answered),
    }


def _gold(items: Items) -> Values:
    """Return the negative log-likelihood of right answers, in nats a token, if it was measured."""
    known = {item: [row for row in rows if "gold_nll" in row] for item, rows in items.items()}
    known = {item: rows for item, rows in known.items() if rows}
    if not known:
        return {}
    return {
        "gold_nll": gold_nll(_flat(known.values())),
        "gold_nll_interval": interval(known, gold_nll),
    }


def gold_nll(rows: Sequence[Scores]) -> float:
    """Return the negative log-likelihood of the right answers of rows, in nats a token."""
    tokens = math.fsum(row["gold_tokens"] for row in rows)
    return math.fsum(row["gold_nll"] for row in rows) / tokens


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


def _differences(task: Task, scored: Mapping[Column, Items]) -> list[Values]:
    """Return how each column differs from plain attention and from SelfExtend, on common items."""
    found = []
    for base in scored:
        if base.method not in ("plain", "selfextend"):
            continue
        for column in scored:
            if column == base or (
                column.method in ("plain", "selfextend")
                and [*scored].index(column) < [*scored].index(base)
            ):
                continue  # of two such columns, the later is compared with the earlier
            common = [item for item in scored[base] if item in scored[column]]
            if common:
                first, second = ({x: scored[c][x] for x in common} for c in (column, base))
                found.append(_difference(task, str(column), str(base), first, second))
    return found


def _difference(task: Task, name: str, base: str, first: Items, second: Items) -> Values:
    values = paired(first, second, task.summary)
    point = task.summary(_flat(first.values())) - task.summary(_flat(second.values()))
    return {
        "column": name,
        "over": base,
        "items": len(first),
        "difference": point,
        "interval": _bounds(values),
    }


def interval(items: Items, statistic: Statistic) -> tuple[float, float] | None:
    """Return the bootstrap interval of a statistic, items drawn with replacement.

    None for a single item, of which nothing is known.
    """
    if len(items) < 2:
        return None
    return _bounds(_resampled(list(items.values()), statistic, _draws(len(items))))


def paired(first: Items, second: Items, statistic: Statistic) -> list[float]:
    """Return bootstrap differences of a statistic over the same items of two columns."""
    draws, keys = _draws(len(first)), list(first)
    if len(keys) < 2:
        return []
    one = _resampled([first[key] for key in keys], statistic, draws)
    two = _resampled([second[key] for key in keys], statistic, draws)
    return [a - b for a, b in zip(one, two, strict=True)]


def _draws(items: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return which items are drawn, ``[RESAMPLES, items]``, the same each time."""
    return np.random.default_rng(_SEED + items).integers(0, items, (RESAMPLES, items))


def _resampled(
    items: Sequence[Sequence[Scores]],
    statistic: Statistic,
    draws: np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> list[float]:
    if statistic is mean_score:  # of sums, which is much faster than of rows
        sums = np.array([math.fsum(row["score"] for row in rows) for rows in items])
        counts = np.array([len(rows) for rows in items])
        means: list[float] = (sums[draws].sum(1) / counts[draws].sum(1)).tolist()
        return means
    return [statistic(_flat(items[place] for place in drawn)) for drawn in draws.tolist()]


def _flat(items: Iterable[Sequence[Scores]]) -> list[Scores]:
    return [row for rows in items for row in rows]


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return float(low), float(high)


def _averaged(name: str, metric: object) -> str:
    """Return under which name a task is averaged with others; empty if it is not.

    Benchmarks report such means: LongBench's of its tasks, L-Eval's of those of one metric, RULER's
    of one length.
    """
    benchmark, *_, last = name.split("/")
    if benchmark == "ruler":
        return f"ruler at {last}"
    return {"longbench": "longbench", "leval": f"leval, {metric}"}.get(benchmark, "")


def _averages(tasks: Mapping[str, Values]) -> Values:
    """Return means over tasks, of the columns that have a score in all of them."""
    found: Values = {}
    members: dict[str, list[Values]] = {}
    for name, task in tasks.items():
        if under := _averaged(name, task["metric"]):
            members.setdefault(under, []).append(task)
    for benchmark, below in members.items():
        columns: list[Mapping[str, Mapping[str, float]]]
        columns = [task["columns"] for task in below]  # type: ignore[misc]  # as summarise made it
        if len(below) < 2:
            continue
        names = dict.fromkeys(name for column in columns for name in column)
        scored = [x for x in names if all("score" in column.get(x, {}) for column in columns)]
        if scored:
            means = {x: sum(column[x]["score"] for column in columns) / len(below) for x in scored}
            found[benchmark] = {"tasks": len(below), "columns": means}
    return found


def table(summary: Mapping[str, object]) -> str:
    """Return the scores of a summary as lines of text, a task each."""
    columns: list[str] = summary["columns"]  # type: ignore[assignment]  # as summarise made it
    tasks: Mapping[str, Mapping[str, Mapping[str, Mapping[str, object]]]]
    tasks = summary["tasks"]  # type: ignore[assignment]  # as summarise made it
    head = ["task", *columns]
    lines = [
        [name, *(_cell(task["columns"].get(x)) for x in columns)] for name, task in tasks.items()
    ]
    averages: Mapping[str, Mapping[str, Mapping[str, float]]]
    averages = summary["averages"]  # type: ignore[assignment]  # as summarise made it
    for name, average in averages.items():
        means = average["columns"]
        lines.append(
            [f"{name}, mean", *(f"{means[x]:.2f}" if x in means else "-" for x in columns)]
        )
    widths = [max(len(line[place]) for line in [head, *lines]) for place in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def _cell(figures: Mapping[str, object] | None) -> str:
    if figures is None:
        return "-"
    missing = int(str(figures["refused"])) + int(str(figures["skipped"]))
    left_out = f" ({missing} left out)" if missing else ""
    if "score" not in figures:
        return f"none{left_out}"
    bounds: tuple[float, float] | None = figures["interval"]  # type: ignore[assignment]  # as summarise made it
    around = "" if bounds is None else f" [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    gold = f", gold NLL {figures['gold_nll']:.3f}" if "gold_nll" in figures else ""
    return f"{figures['score']:.2f}{around}, {figures['answered']} answers{gold}{left_out}"
