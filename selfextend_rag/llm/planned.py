"""The calls of `LongContextLLM` that plan, and run no model."""

from __future__ import annotations

from collections.abc import Sequence

from selfextend_rag.llm.budget import DocumentGroups, Documents, ReadingBudget
from selfextend_rag.planning import ContextPlan


class PlanCalls:
    """``plan`` and ``plan_groups``."""

    budget: ReadingBudget

    def plan(
        self,
        documents: Documents,
        *,
        question: str | Sequence[str] = (),
        max_new_tokens: int | None = None,
        question_reserve: int | None = None,
        turns: int = 1,
    ) -> ContextPlan:
        """Return how documents would be read; the model does not run.

        Args:
            documents: one or several, each a `Document` or a text.
            question: the question to come, or several; by default room is kept for any.
            max_new_tokens: tokens to keep free for an answer; by default those that the model's
                generation configuration names, or an eighth of P and at most 256.
            question_reserve: tokens to keep free for a question and its frame; by default those of
                the longest ``question``, or an eighth of P, from 16 to 512.
            turns: questions and answers to keep room for one after another, as in a conversation.

        Raises:
            ContextBudgetExceeded: they do not fit.
            MemoryBudgetExceeded: they would, but memory does not hold them.
        """
        return self.budget.plan(
            documents,
            questions=[question] if isinstance(question, str) else question,
            max_new_tokens=max_new_tokens,
            question_reserve=question_reserve,
            turns=turns,
        )

    def plan_groups(
        self,
        documents: Documents,
        *,
        question: str | Sequence[str] = (),
        max_new_tokens: int | None = None,
        question_reserve: int | None = None,
        turns: int = 1,
    ) -> DocumentGroups:
        """Return documents in as few groups as can each be read whole; arguments as for ``plan``.

        Each group has its ``documents``, in the order they were given in, and the ``plan`` under
        which ``read`` would read them. The list has a ``lower_bound``, which no grouping is below,
        and says with ``optimal`` whether it is met.

        Raises:
            DocumentTooLarge: a document can't be read even by itself; it is named.
        """
        return self.budget.plan_groups(
            documents,
            questions=[question] if isinstance(question, str) else question,
            max_new_tokens=max_new_tokens,
            question_reserve=question_reserve,
            turns=turns,
        )
