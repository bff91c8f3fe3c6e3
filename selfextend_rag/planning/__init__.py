"""How long a sequence may be, and which settings of SelfExtend it needs; integers only."""

from selfextend_rag.planning.mapped import MapPlanner, published_map
from selfextend_rag.planning.memory import DeviceMemory, MemoryEstimate, ModelMemory
from selfextend_rag.planning.plan import ContextPlan, MemoryBudget, PlanRemark
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.planning.pretraining import (
    CalibrationError,
    calibration_path,
    planner_defaults,
    pretraining_window_of,
)
from selfextend_rag.planning.served import ServedPlanner

__all__ = [
    "CalibrationError",
    "ContextBudgetPlanner",
    "ContextPlan",
    "DeviceMemory",
    "MapPlanner",
    "MemoryBudget",
    "MemoryEstimate",
    "ModelMemory",
    "PlanRemark",
    "ServedPlanner",
    "calibration_path",
    "planner_defaults",
    "pretraining_window_of",
    "published_map",
]
