"""Prints what `selfextend-rag eval` found as a table in Markdown, as the documentation shows it.

    python benchmarks/eval_table.py runs/facts/summary.json
    python benchmarks/eval_table.py runs/gemma/*/summary.json --publish gemma --model NAME

A row for each task and method: the benchmark's score (none where answers were ended early, by
``--answer-tokens``), how unlikely right answers are (with ``--likelihood``), whether they are
likelier than wrong ones, and how both differ from SelfExtend on the same documents. ``--publish
NAME`` writes the table into docs/methods.md, between ``<!-- table: NAME -->`` and ``<!-- end -->``,
and what it is made of into ``docs/results/NAME.json``. There a model has the name that ``--model``
gives it, if it came from a folder: where that lies says nothing to readers, its fingerprint does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
RESULTS = PAGE.parent / "results"
BASE = "selfextend"
ABOUT = (
    *("model", "model_fingerprint", "pretraining_window", "dtype", "device", "methods", "options"),
    *("package", "torch", "transformers", "level", "resamples", "columns"),
)
FIGURES = (
    *("answered", "refused", "skipped", "items", "score", "interval", "gold_nll", "prompt_tokens"),
    *("gold_nll_interval", "likeliest", "likeliest_interval", "by_chance", "group_sizes"),
)
Values = Mapping[str, Any]


def kept(summary: Values, model: str | None = None) -> dict[str, Any]:
    """Return what the table needs of a summary, and what it was measured with.

    Raises:
        ValueError: the summary is of a model in a folder, and ``model`` does not name it.
    """
    if model is None and summary["model"] is not None and Path(summary["model"]).is_absolute():
        raise ValueError(
            f"{summary['model']} is a folder of this machine; name the model (--model)"
        )
    tasks = {
        name: {
            "metric": task["metric"],
            "columns": {
                column: {key: figures[key] for key in FIGURES if key in figures}
                for column, figures in task["columns"].items()
            },
            "differences": [
                each for each in task["differences"] if BASE in (each["over"], each["column"])
            ],
        }
        for name, task in summary["tasks"].items()
    }
    about = {key: summary[key] for key in ABOUT}
    return {**about, "model": model or summary["model"], "tasks": tasks}


def table(summaries: Sequence[Values]) -> str:
    """Return the tasks of all summaries as one table."""
    tasks = {name: task for summary in summaries for name, task in summary["tasks"].items()}
    every = [x for task in tasks.values() for x in task["columns"].values()]
    chosen = any("likeliest" in figures for figures in every)
    scored = all(summary["options"]["answer_tokens"] is None for summary in summaries)
    head = ["task", "method", "documents", *(["score"] if scored else [])]
    head += ["nats a token", "minus SelfExtend"]
    head += ["right one likeliest", "minus SelfExtend"] if chosen else []
    lines = [_line(head), "|" + " --- |" * len(head)]
    for name, task in tasks.items():
        differences = {x["column"]: x for x in task["differences"] if x["over"] == BASE}
        differences |= {x["over"]: turned(x) for x in task["differences"] if x["column"] == BASE}
        for number, (column, figures) in enumerate(task["columns"].items()):
            compared = differences.get(column, {})
            count, score, *more = _cells(figures, compared, chosen=chosen)
            cells = [count, *([score] if scored else []), *more]
            lines.append(_line(["" if number else name, column, *cells]))
    return "\n".join(lines)


def turned(compared: Values) -> dict[str, Any]:
    """Return differences of the other column to this one."""
    found = {}
    for name in ("gold_nll", "likeliest"):
        if name in compared:
            bounds = compared[name]["interval"]
            found[name] = {
                "difference": -compared[name]["difference"],
                "interval": None if bounds is None else (-bounds[1], -bounds[0]),
            }
    return found


def _cells(figures: Values, compared: Values, *, chosen: bool) -> list[str]:
    missing = figures["refused"] + figures["skipped"]
    count = f"{figures['items']}" + (f", {missing} left out" if missing else "")
    if "score" not in figures:
        return [count, *([""] * (5 if chosen else 3))]
    cells = [count, f"{figures['score']:.0f}{_bounds(figures['interval'], '.0f')}"]
    if "gold_nll" not in figures:
        return [*cells, *([""] * (4 if chosen else 2))]
    cells.append(f"{figures['gold_nll']:.2f}{_bounds(figures['gold_nll_interval'], '.2f')}")
    cells.append(_difference(compared.get("gold_nll"), "+.2f"))
    if not chosen:
        return cells
    if "likeliest" not in figures:
        return [*cells, "", ""]
    around = _bounds(figures["likeliest_interval"], ".0f", f"; chance {figures['by_chance']:.0f}")
    cells.append(f"{figures['likeliest']:.0f} %{around}")
    return [*cells, _difference(compared.get("likeliest"), "+.0f")]


def _difference(compared: Values | None, form: str) -> str:
    """Return a difference, bold where its interval leaves out zero."""
    if compared is None:
        return ""
    text, bounds = format(compared["difference"], form), compared["interval"]
    clear = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    return f"{f'**{text}**' if clear else text}{_bounds(bounds, form)}"


def _bounds(bounds: tuple[float, float] | None, form: str, more: str = "") -> str:
    around = "" if bounds is None else " to ".join(format(x, form) for x in bounds)
    text = f"{around}{more}".removeprefix("; ")
    return f" ({text})" if text else ""


def _line(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def publish(name: str, summaries: Sequence[Values], model: str | None = None) -> None:
    """Write the table into its page, and what it is made of next to it.

    Raises:
        ValueError: the page has no place for it, or a model that has no name but a folder.
    """
    before, mark, rest = PAGE.read_text("utf-8").partition(f"<!-- table: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not mark or not end:
        raise ValueError(f"{PAGE} has no place for a table {name!r}")
    text = json.dumps([kept(each, model) for each in summaries], ensure_ascii=False, indent=1)
    (RESULTS / f"{name}.json").write_text(f"{text}\n", "utf-8")
    PAGE.write_text(f"{before}{mark}{table(summaries)}\n{end}{after}", "utf-8")


def main() -> None:
    """Print the table of summaries, and publish it if that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("summaries", type=Path, nargs="+")
    parser.add_argument("--publish", metavar="NAME", help="of the table in the documents")
    parser.add_argument("--model", metavar="NAME", help="of the model, which came from a folder")
    args = parser.parse_args()
    summaries = [json.loads(path.read_text("utf-8")) for path in args.summaries]
    if args.publish:
        publish(args.publish, summaries, args.model)
    print(table(summaries))


if __name__ == "__main__":
    main()
