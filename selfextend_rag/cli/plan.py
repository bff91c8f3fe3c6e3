"""``selfextend-rag plan``: how documents would be read, from a tokenizer and a configuration."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from selfextend_rag.cli.console import Console, silence_transformers
from selfextend_rag.cli.options import (
    memory_limit,
    model_name,
    model_source,
    planner_options,
    read_files,
    user_mistakes,
)

if TYPE_CHECKING:
    from selfextend_rag.llm.budget import DocumentGroups, ReadingBudget


def run(args: argparse.Namespace) -> int:
    """Write the plan; return the exit code."""
    options = planner_options(args)
    documents = read_files(args)
    silence_transformers()
    asked: dict[str, Any] = {"question": args.questions, "max_new_tokens": args.max_new_tokens}
    asked["turns"] = args.turns
    with user_mistakes():
        budget = _budget(args, options)
        if args.groups:
            return _write_groups(args, budget.plan_groups(documents, **asked))
        plan = budget.plan(documents, **asked)
    console = Console()
    if args.json:
        console.write_json({"model": model_name(args), "plan": plan.to_dict()})
    else:
        console.write(f"{plan.explain()}\n")
    return 0


def _budget(args: argparse.Namespace, options: dict[str, Any]) -> ReadingBudget:
    """Return what plans, from a tokenizer and a configuration alone."""
    from selfextend_rag.llm.budget import ReadingBudget
    from selfextend_rag.llm.loading import (
        budget_of_source,
        load_config,
        load_tokenizer,
        stated_max_new_tokens,
    )
    from selfextend_rag.planning import (
        ContextBudgetPlanner,
        planner_defaults,
        pretraining_window_of,
    )
    from selfextend_rag.text.prompts import PromptBuilder

    source = model_source(args.model)
    tokenizer = load_tokenizer(source)
    config = load_config(source, full_attention=args.full_attention)
    window = args.pretraining_window
    if window is None:
        window = pretraining_window_of(config)
    memory = budget_of_source(
        source,
        config,
        device_map=None if args.device == "cpu" else args.device,
        dtype=args.dtype,
        limit=memory_limit(args),
        kv_bits=args.kv_bits,
    )
    return ReadingBudget(
        PromptBuilder(tokenizer),
        ContextBudgetPlanner(window, **planner_defaults(config, window), **options),
        stated_max_new_tokens(source),
        lambda: memory,
    )


def _write_groups(args: argparse.Namespace, groups: DocumentGroups) -> int:
    from selfextend_rag.llm.budget import name_of

    console = Console()
    rows = [([name_of(x) for x in group.documents], group.plan) for group in groups]
    if args.json:
        values = [{"documents": names, "plan": plan.to_dict()} for names, plan in rows]
        bound = {"lower_bound": groups.lower_bound, "optimal": groups.optimal}
        console.write_json({"model": model_name(args), "groups": values, **bound})
        return 0
    for number, (names, plan) in enumerate(rows, 1):
        console.write(f"{number} of {len(rows)}: {', '.join(names)}\n{plan.explain()}\n")
    return 0
