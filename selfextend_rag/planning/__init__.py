"""How long a sequence may be, and which settings of SelfExtend it needs; integers only."""

from selfextend_rag.planning.budget import MemoryBudget
from selfextend_rag.planning.calibration import (
    Calibration,
    CalibrationCell,
    CalibrationError,
    calibration_path,
    find_calibration,
    load_calibration,
    planner_defaults,
)
from selfextend_rag.planning.memory import DeviceMemory, MemoryEstimate, ModelMemory
from selfextend_rag.planning.plan import ContextPlan
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.planning.pretraining import pretraining_window_of

__all__ = [
    "Calibration",
    "CalibrationCell",
    "CalibrationError",
    "ContextBudgetPlanner",
    "ContextPlan",
    "DeviceMemory",
    "MemoryBudget",
    "MemoryEstimate",
    "ModelMemory",
    "calibration_path",
    "find_calibration",
    "load_calibration",
    "planner_defaults",
    "pretraining_window_of",
]
