"""``selfextend-rag plan``: how documents would be read, from a tokenizer and a configuration."""

from __future__ import annotations

import argparse

from selfextend_rag.cli.console import Console, silence_transformers
from selfextend_rag.cli.options import model_name, planner_options, read_files, user_mistakes


def run(args: argparse.Namespace) -> int:
    """Write the plan; return the exit code."""
    options = planner_options(args)
    documents = read_files(args)
    silence_transformers()
    from selfextend_rag.bundled import FOLDER
    from selfextend_rag.llm.budget import ReadingBudget
    from selfextend_rag.llm.loading import load_config, load_tokenizer, stated_max_new_tokens
    from selfextend_rag.llm.prompts import PromptBuilder
    from selfextend_rag.planning import ContextBudgetPlanner, pretraining_window_of

    source = args.model or FOLDER
    with user_mistakes():
        tokenizer = load_tokenizer(source)
        window = args.pretraining_window
        if window is None:
            window = pretraining_window_of(load_config(source))
        budget = ReadingBudget(
            PromptBuilder(tokenizer),
            ContextBudgetPlanner(window, **options),
            stated_max_new_tokens(source),
        )
        plan = budget.plan(documents, questions=args.questions, max_new_tokens=args.max_new_tokens)
    console = Console()
    if args.json:
        console.write_json({"model": model_name(args), "plan": plan.to_dict()})
    else:
        console.write(f"{plan.explain()}\n")
    return 0
