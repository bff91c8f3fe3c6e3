"""One HTML page of a suite's results, which loads nothing from elsewhere, and its JSON."""

from __future__ import annotations

import base64
import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from selfextend_rag.evals.methods.base import LoadedModel, Method
from selfextend_rag.evals.pages import html_page, write_whole
from selfextend_rag.evals.suite.rows import Results, Row
from selfextend_rag.evals.suite.run import SuiteOptions

SUMMARY, REPORT = "summary.json", "report.html"
_EXAMPLES = 2  # answers of each task and column that are shown
_COMPARED = {
    "score": "score",
    "gold_nll": "nats a token of right answers; less is likelier",
    "likeliest": "per cent of right answers likelier than wrong ones",
}


def write_results(
    folder: Path,
    results: Results,
    summary: Mapping[str, Any],
    loaded: LoadedModel,
    methods: Sequence[Method],
    options: SuiteOptions,
    *,
    plot: bool,
) -> None:
    """Write ``summary.json`` and ``report.html`` in a folder; each appears whole or not at all."""
    about = {
        "model": loaded.name,
        "pretraining_window": loaded.window,
        "model_fingerprint": loaded.fingerprint,
        "dtype": str(loaded.model.dtype),
        "device": str(loaded.model.device),
        "methods": {method.name: dict(method.identity()) for method in methods},
        "options": asdict(options),
        "package": metadata.version("selfextend-rag"),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }
    text = json.dumps({**about, **summary}, ensure_ascii=False, indent=1)
    write_whole(folder / SUMMARY, f"{text}\n")
    write_whole(folder / REPORT, page(results, summary, about, plot=plot))


def page(
    results: Results, summary: Mapping[str, Any], about: Mapping[str, Any], *, plot: bool
) -> str:
    """Return the report as one HTML page."""
    title = f"Evaluation of {about['model']}"
    level = f"{summary['level']:.0%}"
    parts = [
        f"<p>Intervals hold {level} of {summary['resamples']} bootstrap samples of documents. A "
        "prompt is read whole, or cut by the benchmark's own rule where a column says so. Answers "
        "are greedy.</p>",
        _scores(summary),
        *_differences(summary),
        *(_pictures(results, summary) if plot else ()),
        "<h2>By group</h2>",
        *_groups(summary),
        "<h2>Time</h2>",
        _times(results),
        "<h2>Answers</h2>",
        *_examples(results),
        "<h2>How it was measured</h2>",
        _table(["", ""], [[name, _shown(value)] for name, value in about.items()]),
        f"<p><small>{_text(platform.platform())}, Python {platform.python_version()}</small></p>",
    ]
    return html_page(title, parts)


def _scores(summary: Mapping[str, Any]) -> str:
    columns, rows = summary["columns"], []
    for name, task in summary["tasks"].items():
        wording = "the benchmark's" if task["prompt"] == "official" else "this package's"
        about = f"{task['metric'].replace('_', ' ')}; prompts in {wording} wording"
        notes = (
            f"<br><small>{_text(about)}{'. ' + _text(task['note']) if task['note'] else ''}</small>"
        )
        cells = [_score(task["columns"].get(column)) for column in columns]
        rows.append([f"{_text(name)}{notes}", *cells])
    for name, average in summary["averages"].items():
        cells = [_mean(average, column) for column in columns]
        rows.append([f"<b>{_text(name)}, mean of {average['tasks']}</b>", *cells])
    return "<h2>Scores</h2>" + _table(["task", *columns], rows)


def _mean(average: Mapping[str, Any], column: str) -> str:
    if column not in average["columns"]:
        return ""
    bounds, missing = average["intervals"][column], average["left_out"][column]
    around = "" if bounds is None else " [{:.2f}, {:.2f}]".format(*bounds)
    left_out = f"<br><small>{missing} left out</small>" if missing else ""
    return f"<b>{average['columns'][column]:.2f}</b>{around}{left_out}"


def _score(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return ""
    counts = [f"{figures['answered']} answers on {figures['items']} documents"]
    counts += [f"{figures[x]} {x}" for x in ("refused", "skipped") if figures[x]]
    if "score" not in figures:
        return f"<small>{', '.join(counts)}</small>"
    if figures["unfinished"]:
        counts.append(f"{figures['unfinished']} cut off at their longest")
    counts.append(f"{figures['prompt_tokens']:.0f} tokens a prompt")
    if figures["cut_tokens"]:
        counts.append(f"{figures['cut_tokens']:.0f} tokens cut")
    if figures["group_sizes"] != [1]:
        counts.append(f"group sizes {', '.join(map(str, figures['group_sizes']))}")
    if "chance" in figures:
        counts.append(f"by chance {figures['chance']:.2f}")
    if "compliance" in figures:
        counts.append(f"{figures['compliance']:.0f} % say yes or no")
    if "gold_nll" in figures:
        counts.append(f"right answers: {figures['gold_nll']:.3f} nats a token")
    if "likeliest" in figures:
        shares = f"{figures['likeliest']:.0f} %, by chance {figures['by_chance']:.0f} %"
        counts.append(f"the right answer is likelier than wrong ones: {shares}")
    if "word_perplexity" in figures:
        counts.append(f"{figures['word_perplexity']:.2f} a word")
    around = "" if figures["interval"] is None else " [{:.2f}, {:.2f}]".format(*figures["interval"])
    return f"<b>{figures['score']:.2f}</b>{around}<br><small>{', '.join(counts)}</small>"


def _differences(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    means = {f"{name}, mean": average for name, average in summary["averages"].items()}
    for name, compared in {**summary["tasks"], **means}.items():
        for found in compared["differences"]:
            for part, unit in _COMPARED.items():
                values = found if part == "score" else found.get(part)
                if values is not None:
                    columns = f"{found['column']} minus {found['over']}"
                    difference, documents = _difference(values), str(values["items"])
                    rows.append([_text(name), _text(columns), unit, difference, documents])
    if not rows:
        return []
    said = "<p>On the same documents; bold where the interval leaves out zero.</p>"
    head = ["task", "methods", "in", "difference", "documents"]
    return ["<h2>Differences</h2>", said, _table(head, rows)]


def _difference(values: Mapping[str, Any]) -> str:
    bounds, figure = values["interval"], f"{values['difference']:+.2f}"
    around = "" if bounds is None else f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"
    clear = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    return f"<b>{figure}</b>{around}" if clear else f"{figure}{around}"


def _pictures(results: Results, summary: Mapping[str, Any]) -> list[str]:
    from selfextend_rag.evals.suite.figures import pictures

    found = []
    for title, png in pictures(results, summary):
        data = base64.b64encode(png).decode("ascii")
        found.append(
            f"<h3>{_text(title)}</h3><img alt='{_text(title)}' src='data:image/png;base64,{data}'>"
        )
    return found


def _groups(summary: Mapping[str, Any]) -> list[str]:
    found = []
    for name, task in summary["tasks"].items():
        columns = task["columns"]
        for group in dict.fromkeys(x for c in columns.values() for x in c.get("groups", {})):
            parts = {x: columns[x].get("groups", {}).get(group, {}) for x in columns}
            values = dict.fromkeys(value for part in parts.values() for value in part)
            rows = [
                [_text(value), *(_part(parts[x].get(value)) for x in columns)] for value in values
            ]
            found += [f"<h3>{_text(name)}, by {_text(group)}</h3>", _table([group, *columns], rows)]
    return found or ["<p>There is nothing to break down.</p>"]


def _part(part: Mapping[str, Any] | None) -> str:
    return "" if part is None else f"{part['score']:.2f} <small>({part['answered']})</small>"


def _times(results: Results) -> str:
    rows = []
    for (task, column), found in results.rows.items():
        answered = [row for row in found if row.status == "answered"]
        read = {row.item: row.read_seconds for row in answered}
        if answered:
            answering = sum(row.seconds for row in answered)
            figures = [f"{sum(read.values()):.1f}", f"{answering:.1f}"]
            rows.append([_text(task), _text(str(column)), *figures])
    return _table(["task", "method", "seconds of reading", "seconds of answering"], rows)


def _examples(results: Results) -> list[str]:
    rows = []
    for (task, column), found in results.rows.items():
        rows += [
            [_text(f"{task}, {row.item}"), _text(str(column)), *_answer(row)]
            for row in found[:_EXAMPLES]
        ]
    return [_table(["task, document", "method", "answer", "right", "score"], rows)]


def _answer(row: Row) -> list[str]:
    if row.status != "answered":
        return [f"<small>{_text(f'{row.status}: {row.reason}')}</small>", "", ""]
    gold = "; ".join(f"{name}: {_plain(value)}" for name, value in row.gold.items())
    score = f"{row.scores['score']:.2f}"
    return [f"<pre>{_text(row.text[:400])}</pre>", f"<small>{_text(gold[:400])}</small>", score]


def _plain(value: object) -> str:
    """Return a JSON value as people write it: texts as they are, lists by comma, none left out."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        given = {name: each for name, each in value.items() if each not in (None, "None", ())}
        return ", ".join(f"{name} = {_plain(each)}" for name, each in given.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{x}</td>' for x in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _shown(value: object) -> str:
    if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        lines = [f"<b>{_text(name)}</b>: {_shown(each)}" for name, each in value.items()]
        return "<br>".join(lines)
    return _text(_plain(value)) or "as by default"


def _text(text: str) -> str:
    return html.escape(text)
