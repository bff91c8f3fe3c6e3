"""Benchmarks as tasks: their records, prompts, rules for what is too long, and scores.

A file for each benchmark; ``items`` has what they are made of, ``files`` reads records, ``cutting``
the rules for long prompts. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfextend_rag.evals.benchmarks import (
    babilong,
    infinitebench,
    leval,
    longbench,
    longeval,
    multidoc,
    pg19,
    vhs,
)
from selfextend_rag.evals.benchmarks.files import Source
from selfextend_rag.evals.benchmarks.generated import facts, passkeys, ruler
from selfextend_rag.evals.benchmarks.generated.haystack import SyntheticOptions
from selfextend_rag.evals.benchmarks.items import BenchmarkError, Item, Question, Task, Tokens

__all__ = [
    "BenchmarkError",
    "Item",
    "Question",
    "Source",
    "SyntheticOptions",
    "Task",
    "Tokens",
    "all_tasks",
    "selected_tasks",
]


def all_tasks(source: Source, options: SyntheticOptions) -> list[Task]:
    """Return every task that there is, whether its data is there or not."""
    return [
        *longbench.tasks(source),
        *leval.tasks(source),
        *multidoc.tasks(source),
        *longeval.tasks(source),
        *pg19.tasks(source, options.lengths),
        *babilong.tasks(source),
        *infinitebench.tasks(source),
        *vhs.tasks(source),
        *ruler.tasks(source, options),
        *passkeys.tasks(source, options),
        *facts.tasks(options),
    ]


def selected_tasks(
    names: Sequence[str], source: Source, options: SyntheticOptions
) -> tuple[list[Task], list[str]]:
    """Return the tasks that names select, and the names of those whose data is not there.

    A name selects the task of that name, and those below it: ``leval``, ``longeval/lines``.

    Raises:
        BenchmarkError: a name selects nothing, or nothing whose data is there.
    """
    every = all_tasks(source, options)
    found: dict[str, Task] = {}
    missing: dict[str, None] = {}
    for name in names:
        below = [task for task in every if f"{task.name}/".startswith(f"{name}/")]
        if not below:
            known = ", ".join(dict.fromkeys(task.name.split("/")[0] for task in every))
            raise BenchmarkError(f"{name!r} is no task; there are those of {known}")
        there = [task for task in below if task.available()]
        missing.update({task.name: None for task in below if task not in there})
        if not there:
            where = f"in {source.folder}"
            if source.folder is None:
                where = "without a folder (--data), or a data set's id and the library datasets"
            raise BenchmarkError(f"there is no data for {name} {where}")
        found.update({task.name: task for task in there})
    return list(found.values()), list(missing)
