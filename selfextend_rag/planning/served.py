"""Plans for a model that a server runs: it states how much it takes, and chooses its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfextend_rag.planning.plan import ContextPlan, MemoryBudget
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.planning.refusals import NamedSize, served_refusal
from selfextend_rag.positions import SelfExtend


@dataclass(frozen=True)
class ServedPlanner(ContextBudgetPlanner):
    """Plans within the window that a server states; whether and how it extends is the server's.

    Args:
        served_window: tokens of prompt and answer together that the server takes; by default the
            pretraining window.

    Raises:
        ValueError: a setting is out of range.
    """

    served_window: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.served_window == 0:
            object.__setattr__(self, "served_window", self.pretraining_window)
        if self.served_window < 8:
            raise ValueError(f"the served window must be at least 8, got {self.served_window}")

    @property
    def extended_window(self) -> int:
        """Return the longest sequence that the server takes."""
        return self.served_window

    def _settled(self, plain: ContextPlan) -> ContextPlan | None:
        fits = plain.total_tokens <= self.served_window
        return replace(plain, served_window=self.served_window) if fits else None

    def _planned(
        self, plain: ContextPlan, memory: MemoryBudget | None, documents: Sequence[NamedSize] = ()
    ) -> ContextPlan:
        plan = self._settled(plain)
        if plan is None:
            raise served_refusal(replace(plain, served_window=self.served_window), documents)
        return plan

    def plan_within(
        self, earlier: ContextPlan, prompt_tokens: int, max_new_tokens: int
    ) -> ContextPlan:
        """Return the plan of a prompt that begins with what was planned before.

        Raises:
            ContextBudgetExceeded: prompt and answer exceed what the server takes.
        """
        plan = replace(
            earlier, prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, reserve_tokens=0,
            turns=1,
        )  # fmt: skip
        if plan.free_tokens < 0:
            raise served_refusal(plan, ())
        return plan

    def _best(self) -> tuple[SelfExtend | None, int]:
        return None, self.served_window

    def _sufficient_group_size(self, needed: int) -> int | None:
        return None
