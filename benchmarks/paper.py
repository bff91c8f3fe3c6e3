"""The paper's models on its tasks: commands, what they cost, and figures next to the published.

``benchmarks/paper.sh`` runs what this prints; see there for the variables that choose.

    python benchmarks/paper.py models            # those chosen
    python benchmarks/paper.py cost MODEL        # memory and hours, derived and not measured
    python benchmarks/paper.py commands MODEL    # one a line
    python benchmarks/paper.py table MODEL       # published and measured, side by side

Models, settings and published figures, each with its source, are in ``results/published.json``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parent / "results" / "published.json"
TOKENS_A_WORD = 1.5  # assumed: English prose has fewer, code more
ROTATED_COPIES = 3  # keys as neighbors, keys in groups, values
WORKING_GIB = 4  # assumed: activations of a chunk, buffers of kernels, the CUDA context

Values = Mapping[str, Any]


class NoSuchName(ValueError):
    """A model or task that the published figures do not have."""


@dataclass(frozen=True)
class Choice:
    """What to run, and where.

    Args:
        models, tasks: names; a task's name selects those below it. All if empty.
        data: folder of the benchmarks' files; without it they are looked for on the hub.
        weights: folder with a folder for each model, of its name on the hub without the owner.
        out: folder for results.
        limit: documents of each task; all if None.
        device: of torch.
        tflops: that reading reaches, in 10^12 operations a second.
        milliseconds: of each token of an answer.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    data: str = ""
    weights: str = ""
    out: str = "runs/paper"
    limit: int | None = None
    device: str = "cuda"
    tflops: float = 445
    milliseconds: float = 16

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Choice:
        """Return what variables of the environment choose.

        Raises:
            ValueError: a number is none, or not positive.
        """

        def number(name: str, default: float) -> float:
            try:
                value = float(environment.get(name) or default)
            except ValueError:
                value = math.nan
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {environment[name]!r}")
            return value

        limit = environment.get("LIMIT")
        if limit and not (limit.isdecimal() and int(limit)):
            raise ValueError(f"LIMIT must be a number of documents, got {limit!r}")
        return cls(
            models=tuple(environment.get("MODELS", "").replace(",", " ").split()),
            tasks=tuple(environment.get("TASKS", "").replace(",", " ").split()),
            data=environment.get("DATA", ""),
            weights=environment.get("WEIGHTS", ""),
            out=environment.get("OUT") or cls.out,
            limit=int(limit) if limit else None,
            device=environment.get("DEVICE") or cls.device,
            tflops=number("TFLOPS", cls.tflops),
            milliseconds=number("MS_PER_TOKEN", cls.milliseconds),
        )


def published() -> Values:
    """Return the file of published figures."""
    return json.loads(PUBLISHED.read_text("utf-8"))


def chosen_models(choice: Choice) -> list[str]:
    """Return the models to run, in the order of the file.

    Raises:
        NoSuchName: one is not in the file, or a task is of none of them.
    """
    models = published()["models"]
    if unknown := [name for name in choice.models if name not in models]:
        raise NoSuchName(f"no model {unknown[0]!r}; there are {', '.join(models)}")
    chosen = [name for name in models if not choice.models or name in choice.models]
    tasks = {task for name in chosen for run in models[name]["runs"] for task in run["scores"]}
    for name in choice.tasks:
        if not any(_selects(name, task) for task in tasks):
            known = ", ".join(sorted(tasks))
            raise NoSuchName(f"no task {name!r} of {', '.join(chosen)}; there are {known}")
    return chosen


def _selects(name: str, task: str) -> bool:
    return f"{task}/".startswith(f"{name}/")


def runs_of(model: Values, choice: Choice) -> list[tuple[Values, list[str]]]:
    """Return the runs of a model with the tasks chosen of each; none without a task."""
    found = []
    for run in model["runs"]:
        tasks = [
            task
            for task in run["scores"]
            if not choice.tasks or any(_selects(name, task) for name in choice.tasks)
        ]
        if tasks:
            found.append((run, tasks))
    return found


def command(name: str, run: Values, tasks: Iterable[str], choice: Choice) -> list[str]:
    """Return the command of a run, as a list of words.

    Plain attention has prompts cut to its window by the benchmark's rule, SelfExtend to the length
    that was published; pass keys are whole.
    """
    model = published()["models"][name]
    local = Path(choice.weights) / model["hub"].rpartition("/")[2]
    words = ["selfextend-rag", "eval", *tasks]
    words += ["--model", str(local) if choice.weights else model["hub"], *model["options"]]
    words += ["--device", choice.device, "--dtype", "bfloat16", "--methods", run["method"]]
    if "group_size" in run:
        words += ["--group-size", str(run["group_size"])]
        words += ["--neighbor-window", str(run["neighbor_window"])]
    words += ["--inputs", "cut"]
    if "cut_tokens" in run:
        words += ["--cut-tokens", str(run["cut_tokens"])]
    words += ["--data", choice.data] if choice.data else []
    words += ["--limit", str(choice.limit)] if choice.limit else []
    return [*words, "--out", str(folder_of(name, run, choice)), "--no-plot"]


def folder_of(name: str, run: Values, choice: Choice) -> Path:
    """Return where a run keeps its rows, which a second run of it continues."""
    return Path(choice.out) / name / run["name"]


@dataclass(frozen=True)
class Cost:
    """What runs take at most, derived from tokens.

    Args:
        gib: memory of the GPU.
        reading_hours, answering_hours: of all runs.
    """

    gib: float
    reading_hours: float
    answering_hours: float


def cost(name: str, choice: Choice) -> Cost:
    """Return what the runs of a model take at most; pass keys, a few prompts, are left out.

    Each question counts as a document of its own, and each answer as long as allowed.
    """
    file = published()
    model, known = file["models"][name], file["questions"]["tasks"]
    longest, operations, answered = 0.0, 0.0, 0
    for run, tasks in runs_of(model, choice):
        most = run.get("cut_tokens", model["pretraining_window"])
        for task in (task for task in tasks if task in known):
            facts = known[task]
            count = facts["questions"]
            if choice.limit and task.startswith("longbench/"):  # a question on each document
                count = min(count, choice.limit)
            tokens = min(facts["words"] * TOKENS_A_WORD, most)
            # two operations a weight and token, and as many for each of q k and p v
            attention = 2 * model["layers"] * model["hidden_size"] * tokens**2
            operations += count * (2 * model["parameters"] * tokens + attention)
            answered += count * facts["answer_tokens"]
        longest = max(longest, most)
    key_or_value = model["layers"] * model["key_value_heads"] * model["head_size"]
    cached = 2 * ROTATED_COPIES * key_or_value * longest  # bfloat16
    return Cost(
        gib=(2 * model["parameters"] + cached) / 2**30 + WORKING_GIB,
        reading_hours=operations / (choice.tflops * 1e12) / 3600,
        answering_hours=answered * choice.milliseconds / 1000 / 3600,
    )


def explained(name: str, choice: Choice) -> str:
    """Return the cost of a model as text, with what it is derived from."""
    found, model = cost(name, choice), published()["models"][name]
    total = found.reading_hours + found.answering_hours
    lines = [
        f"{name}: at most {total:.1f} hours and about {found.gib:.0f} GiB of GPU memory; derived, "
        "not measured.",
        f"  memory: {model['parameters'] / 1e9:.2f} billion weights in bfloat16, the longest "
        f"prompt's keys twice (neighbors, groups) and values once, {WORKING_GIB} GiB to work in",
        f"  reading {found.reading_hours:.1f} h: published words a document times {TOKENS_A_WORD} "
        "tokens, cut as the prompts are; 2 operations a weight and token, and attention's; "
        f"{choice.tflops:g} TFLOPS (TFLOPS=)",
        f"  answering {found.answering_hours:.1f} h: answers as long as allowed, one at a time, "
        f"{choice.milliseconds:g} ms a token (MS_PER_TOKEN=)",
        "  less where several questions share a document (L-Eval), or answers end early",
    ]
    if choice.limit:
        lines.append(
            "  LIMIT lowers the figures of LongBench alone, whose documents have a question"
        )
    return "\n".join(lines)


def table(name: str, choice: Choice) -> str:
    """Return the published figures of a model next to those measured, as Markdown."""
    model = published()["models"][name]
    blocks = [f"# {name}", *_notes(model)]
    for run, tasks in runs_of(model, choice):
        blocks.append(f"## {run['name']}\n\n" + "\n".join(_about(run)))
        measured = _measured(folder_of(name, run, choice))
        rows = [_row(task, run, measured.get(task)) for task in tasks]
        rows += _mean_row(run, tasks, measured)
        blocks.append(
            "| task | published | measured | 95 % | difference | answers |\n"
            "| --- | ---: | ---: | --- | ---: | --- |\n" + "\n".join(rows)
        )
    return "\n\n".join(blocks)


def _notes(model: Values) -> list[str]:
    return ["\n".join(f"* {note}" for note in model["notes"])] if model["notes"] else []


def _about(run: Values) -> list[str]:
    lines = [f"Published: {run['source']}."]
    if "note" in run:
        lines.append(f"Note: {run['note']}.")
    if "group_size" in run:
        settings = f"G = {run['group_size']}, W = {run['neighbor_window']}"
        lines.append(f"Measured with {settings} ({run['settings_source']}).")
    return lines


def _measured(folder: Path) -> dict[str, Values]:
    """Return the one column of each task in a run's summary; empty if it has not ended once."""
    path = folder / "summary.json"
    if not path.exists():
        return {}
    summary = json.loads(path.read_text("utf-8"))
    found = {}
    for task, values in summary["tasks"].items():
        columns = list(values["columns"].values())
        if len(columns) != 1:
            raise ValueError(f"{path}: {task} has {len(columns)} columns; one is expected")
        found[task] = columns[0]
    return found


def _row(task: str, run: Values, figures: Values | None) -> str:
    known = run["scores"][task]
    if figures is None:
        return f"| {task} | {known:.2f} | not run | | | |"
    missing = figures["refused"] + figures["skipped"]
    answers = f"{figures['answered']}" + (f", {missing} left out" if missing else "")
    if "score" not in figures:
        return f"| {task} | {known:.2f} | none | | | {answers} |"
    bounds = figures["interval"]
    around = "" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
    score = figures["score"]
    return f"| {task} | {known:.2f} | {score:.2f} | {around} | {score - known:+.2f} | {answers} |"


def _mean_row(run: Values, tasks: list[str], measured: Mapping[str, Values]) -> list[str]:
    """Return the mean over the tasks, if all of them were measured and there are several."""
    if len(tasks) < 2:
        return []
    known = mean(run["scores"][task] for task in tasks)
    if not all("score" in measured.get(task, {}) for task in tasks):
        return [f"| mean of {len(tasks)} | {known:.2f} | not all measured | | | |"]
    found = mean(measured[task]["score"] for task in tasks)
    return [f"| mean of {len(tasks)} | {known:.2f} | {found:.2f} | | {found - known:+.2f} | |"]


def mean(values: Iterable[float]) -> float:
    """Return the mean of some numbers."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def main(arguments: list[str], environment: Mapping[str, str]) -> str:
    """Return what is to be printed.

    Raises:
        ValueError: the arguments or a variable are not what they should be.
    """
    choice = Choice.of(environment)
    models = chosen_models(choice)
    match arguments:
        case ["models"]:
            # a model that has none of the tasks has nothing to run
            return "\n".join(x for x in models if runs_of(published()["models"][x], choice))
        case ["cost", name] if name in models:
            return explained(name, choice)
        case ["commands", name] if name in models:
            runs = runs_of(published()["models"][name], choice)
            return "\n".join(shlex.join(command(name, *run, choice)) for run in runs)
        case ["table", name] if name in models:
            return table(name, choice)
    raise ValueError("takes models, or cost, commands or table and one of the models chosen")


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:], os.environ))
    except ValueError as error:
        sys.exit(f"paper.py: {error}")
