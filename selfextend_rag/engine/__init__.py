"""Token ids in, token ids out, on one causal language model."""

from selfextend_rag.engine.decode import Answers, BatchPrompt, Generation
from selfextend_rag.engine.engine import Engine
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.run import (
    Cancelled,
    FinishReason,
    Observer,
    Progress,
    Reserve,
    Run,
    Usage,
    is_cancelled,
)
from selfextend_rag.engine.sampling import GenerationSettings, TokenConstraint, answer_options
from selfextend_rag.engine.worker import Job, ModelWorker, in_thread, worker_of

__all__ = [
    "Answers",
    "BatchPrompt",
    "CachedPrefix",
    "Cancelled",
    "Engine",
    "FinishReason",
    "Generation",
    "GenerationSettings",
    "Job",
    "ModelWorker",
    "Observer",
    "Progress",
    "Reserve",
    "Run",
    "TokenConstraint",
    "Usage",
    "answer_options",
    "in_thread",
    "is_cancelled",
    "worker_of",
]
