"""How much room documents, questions and answers take; needs a tokenizer, and no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from selfextend_rag.documents import Document
from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.llm.prompts import PromptBuilder
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan

_STEP = 1.5

Documents = str | Document | Sequence[str | Document]


class ReadingBudget:
    """Plans readings for one tokenizer and one pretraining window.

    Args:
        prompts: the model's prompts.
        planner: what may be chosen for the model.
        stated_max_new_tokens: the length of answers that the model's generation configuration
            names, if it does.
    """

    def __init__(
        self,
        prompts: PromptBuilder,
        planner: ContextBudgetPlanner,
        stated_max_new_tokens: int | None = None,
    ) -> None:
        self.prompts = prompts
        self.planner = planner
        window = planner.pretraining_window
        self.max_new_tokens = stated_max_new_tokens or max(1, min(256, window // 8))
        """The length of answers if none is asked for: as stated, or P / 8 and at most 256."""
        self.question_reserve = max(16, min(512, window // 8))
        """Tokens kept free for a question if it is not known: P / 8, from 16 to 512."""

    def plan(
        self,
        documents: Documents,
        *,
        questions: Iterable[str] = (),
        max_new_tokens: int | None = None,
        question_reserve: int | None = None,
    ) -> ContextPlan:
        """Return how documents would be read; see ``LongContextLLM.plan``."""
        read = self.prompts.documents(as_documents(documents))
        if question_reserve is None:
            lengths = (len(self.prompts.question(question)) for question in questions)
            question_reserve = max(lengths, default=None)
        return self.plan_tokens(len(read), max_new_tokens, question_reserve)

    def plan_tokens(
        self, read: int, max_new_tokens: int | None, question_reserve: int | None
    ) -> ContextPlan:
        """Return how this many tokens of documents would be read."""
        return self.planner.plan(
            read,
            self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            reserve_tokens=self.question_reserve if question_reserve is None else question_reserve,
        )

    def plan_prompt(self, prompt_tokens: int, max_new_tokens: int) -> ContextPlan:
        """Return how a prompt of ``generate`` and its answer are run.

        What must be extended gets settings for more tokens than it has: for the next of the lengths
        P * 1.5, P * 1.5 ** 2, ... So the turns of a conversation that grows mostly have the same
        settings, and each reuses the keys of those before. The length of prompt and answer alone
        decides, never what happens to be kept.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit.
        """
        plan = self.planner.plan(prompt_tokens, max_new_tokens)
        if not plan.extended:
            return plan
        planned = float(plan.pretraining_window)
        while planned < plan.total_tokens:
            planned *= _STEP
        farthest = max(plan.total_tokens, self.planner.extended_window)
        reserve = min(int(planned), farthest) - plan.total_tokens
        try:
            return self.planner.plan(prompt_tokens, max_new_tokens, reserve_tokens=reserve)
        except ContextBudgetExceeded:  # the prompt itself fits, and that is what was asked
            return plan


def as_documents(documents: Documents) -> list[Document]:
    """Return a list of documents, whatever was given."""
    if isinstance(documents, str | Document):
        documents = [documents]
    return [
        Document.from_text(document) if isinstance(document, str) else document
        for document in documents
    ]
