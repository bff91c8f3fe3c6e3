"""Pictures of results, as PNG: scores by task, depth and length, and place of the gold document."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfextend_rag.evals.benchmarks.items import Task
from selfextend_rag.evals.plots import maps_of, pyplot
from selfextend_rag.evals.suite.rows import Results, Row


def pictures(results: Results, summary: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield a title and a PNG for each picture that the results allow."""
    plt = pyplot()
    scored = {name: task for name, task in summary["tasks"].items() if not task["lower_is_better"]}
    if scored:
        yield "Scores by task", _bars(plt, scored, summary["columns"], "score")
    measured = {
        name: task
        for name, task in summary["tasks"].items()
        if any("gold_nll" in figures for figures in task["columns"].values())
    }
    if measured:
        title = "How unlikely right answers are by task"
        yield title, _bars(plt, measured, summary["columns"], "gold_nll")
    for benchmark in dict.fromkeys(name.split("/")[0] for name in summary["tasks"]):
        yield from _of_benchmark(plt, benchmark, results)


def _of_benchmark(plt: Any, benchmark: str, results: Results) -> Iterator[tuple[str, bytes]]:
    by_kind: dict[str, list[Task]] = {}
    for task in results.tasks:  # passkey/5/2000 and passkey/5/8000 share a picture
        if task.name.split("/")[0] == benchmark:
            by_kind.setdefault(task.name.rpartition("/")[0], []).append(task)
    for kind, tasks in by_kind.items():
        rows = {
            str(column): [
                row
                for task in tasks
                for row in results.rows.get((task.name, column), [])
                if row.status == "answered"
            ]
            for column in results.columns
        }
        rows = {name: found for name, found in rows.items() if found}
        every = [row for found in rows.values() for row in found]
        names = set.intersection(*({*row.groups} for row in every)) if every else set()
        if {"depth", "length"} <= names:
            yield f"{kind}: score by depth and length", _heat_maps(plt, rows, "length")
        elif {"depth", "pictures"} <= names:
            title = f"{kind}: score by depth and number of pictures"
            yield title, _heat_maps(plt, rows, "pictures")
        elif "gold_at" in names:
            yield f"{kind}: score by the place of the gold document", _curves(plt, rows, "gold_at")
        elif "depth" in names:
            yield f"{kind}: score by depth", _curves(plt, rows, "depth")


def _bars(plt: Any, tasks: Mapping[str, Any], columns: Sequence[str], key: str) -> bytes:
    """Return bars of a figure, ``score`` or ``gold_nll``, with intervals."""
    of_score, names = key == "score", list(tasks)
    figure, axis = plt.subplots(
        figsize=(8, 1 + 0.3 * len(names) * len(columns)), layout="constrained"
    )
    height = 0.8 / len(columns)
    for number, column in enumerate(columns):
        for place, name in enumerate(names):
            found = tasks[name]["columns"].get(column, {})
            if key not in found:
                continue
            value = found[key]
            low, high = found["interval" if of_score else f"{key}_interval"] or (value, value)
            errors = [[max(0, value - low)], [max(0, high - value)]]
            axis.barh(place + number * height, value, height, xerr=errors, color=f"C{number}")
            if of_score and "chance" in found:
                ends = place + (number - 0.5) * height, place + (number + 0.5) * height
                axis.plot([found["chance"]] * 2, ends, "k:")
        axis.barh(0, 0, color=f"C{number}", label=column)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names)
    axis.invert_yaxis()
    unit = "score" if of_score else "nats a token of the right answer (less is likelier)"
    if of_score and any("chance" in x for task in tasks.values() for x in task["columns"].values()):
        unit += " (dotted: by chance)"
    axis.set(xlabel=f"{unit}, with its interval", xlim=(0, 100 if of_score else None))
    axis.legend()
    return _png(plt, figure)


def _heat_maps(plt: Any, rows: Mapping[str, Sequence[Row]], along: str) -> bytes:
    """Return maps of scores by depth and by how long the document is: ``along`` is its group."""
    grids: dict[str, dict[tuple[float, float], float]] = {}
    for name, found in rows.items():
        places = {(float(row.groups[along]), float(row.groups["depth"])) for row in found}
        grids[name] = {(x, y): _mean(found, **{along: x, "depth": y}) for x, y in places}
    lengths = "prompt and answer, tokens" if along == "length" else along
    chances = {row.scores.get("chance") for found in rows.values() for row in found}
    (chance,) = chances if len(chances) == 1 else (None,)
    values = "score" if chance is None else f"score; by chance {chance:.0f}"
    return _png(plt, maps_of(plt, grids, lengths, values, most=100))


def _curves(plt: Any, rows: Mapping[str, Sequence[Row]], by: str) -> bytes:
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, found in rows.items():
        values = sorted({float(row.groups[by]) for row in found})
        axis.plot(values, [_mean(found, **{by: value}) for value in values], "o-", label=name)
    axis.set(xlabel=by.replace("_", " "), ylabel="score", ylim=(-3, 103))
    axis.legend()
    return _png(plt, figure)


def _mean(rows: Sequence[Row], **groups: float) -> float:
    scores = [
        row.scores["score"]
        for row in rows
        if all(float(row.groups[name]) == value for name, value in groups.items())
    ]
    return sum(scores) / len(scores)


def _png(plt: Any, figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    return stream.getvalue()
