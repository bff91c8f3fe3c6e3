"""``selfextend-rag plan`` and ``support``: what would be done with documents, and with a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typer import Option

from selfextend_rag.cli.app import app, silence_transformers, with_options
from selfextend_rag.cli.options import (
    ModelOptions,
    ReadingOptions,
    Values,
    listed,
    user_mistakes,
)

if TYPE_CHECKING:
    from selfextend_rag.llm.budget import ReadingBudget, Space


@app.command()
@dataclass(kw_only=True)
class Plan(ReadingOptions):
    """Say how documents would be read; runs no model."""

    questions: list[str] = Option([], "-q", "--question", help="to come; any if none is given")
    turns: int = Option(1, help="questions and answers to keep space for, one after another")
    groups: bool = Option(False, "--groups", help="plan as few prompts as hold the files whole")

    def run(self) -> int:
        planner_options = self.planner_options(self.questions)
        files = self.documents()
        documents = files.documents
        silence_transformers()
        from selfextend_rag.llm.budget import name_of

        space: Space = {"turns": self.turns, "max_new_tokens": self.max_new_tokens}
        with user_mistakes():
            budget = self._budget(planner_options)
            if self.groups:
                found = budget.plan_groups(documents, self.questions, space)
                rows = [(list(map(name_of, group.documents)), group.plan) for group in found]
                plans = [{"documents": names, "plan": plan.to_dict()} for names, plan in rows]
                bounds = {"lower_bound": found.lower_bound, "optimal": found.optimal}
                report: dict[str, object] = {"groups": plans, **bounds}
                texts = [
                    f"{number} of {len(rows)}: {', '.join(names)}\n{plan.explain()}"
                    for number, (names, plan) in enumerate(rows, 1)
                ]
            else:
                plan = budget.planned(documents, self.questions, space)[1]
                report, texts = {"plan": plan.to_dict()}, [plan.explain()]
        report = {"model": self.model, **listed(documents, files), **report}
        self.write_result(report, with_options("\n".join(texts)))
        return 0

    def _budget(self, planner_options: Values) -> "ReadingBudget":
        """Return what plans, from a tokenizer and a configuration alone."""
        from selfextend_rag import planning
        from selfextend_rag.llm.budget import ReadingBudget
        from selfextend_rag.llm.loading import sources
        from selfextend_rag.llm.loading.unloaded import budget_of_source
        from selfextend_rag.text.prompts import PromptBuilder

        tokenizer = sources.load_tokenizer(self.source)
        processor = sources.usable_processor(self.source, tokenizer)
        config = sources.load_config(self.source, full_attention=self.full_attention)
        window = self.pretraining_window
        if window is None:
            window = planning.pretraining_window_of(config)
        memory = budget_of_source(
            self.source,
            config,
            device_map=self.device_map,
            dtype=self.dtype,
            limit=self.memory_limits(),
            kv_bits=self.kv_bits,
            weight_bits=self.weight_bits,
        )
        defaults = planning.planner_defaults(config, window)
        prompts = PromptBuilder(tokenizer)
        if processor is not None:
            from selfextend_rag.text.picture_prompts import PicturePrompts
            from selfextend_rag.text.pictures import tokenizer_of

            prompts = PicturePrompts(tokenizer_of(processor, tokenizer), processor=processor)
        planner = planning.ContextBudgetPlanner(window, **defaults, **planner_options)
        stated = sources.stated_max_new_tokens(self.source)
        return ReadingBudget(prompts, planner, stated, lambda: memory)


@app.command()
@dataclass(kw_only=True)
class Support(ModelOptions):
    """Say which layers of a model are extended.

    Exit code 0 when the model can be extended, 1 when it can't. By default its configuration
    alone is judged, by a narrow copy with random weights.
    """

    weights: bool = Option(False, "--weights", help="load the model and judge itself")

    def run(self) -> int:
        silence_transformers()
        from selfextend_rag.llm.loading.model import load_model
        from selfextend_rag.llm.loading.sources import load_config
        from selfextend_rag.model import support

        load = load_model if self.weights else load_config
        report = support(load(self.source, full_attention=self.full_attention))
        self.write_result(report.to_dict(), str(report))
        return 0 if report.supported else 1
