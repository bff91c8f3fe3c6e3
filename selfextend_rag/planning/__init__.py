"""How long a sequence may be, and which settings of SelfExtend it needs; integers only."""

from selfextend_rag.planning.plan import ContextPlan
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.planning.pretraining import pretraining_window_of

__all__ = ["ContextBudgetPlanner", "ContextPlan", "pretraining_window_of"]
