"""Token ids in, token ids out, on one causal language model."""

from selfextend_rag.engine.decode import Answers, BatchPrompt, end_tokens
from selfextend_rag.engine.engine import Engine
from selfextend_rag.engine.run import (
    CachedPrefix,
    Cancelled,
    FinishReason,
    Progress,
    Reserve,
    Run,
    Usage,
    is_cancelled,
)
from selfextend_rag.engine.sampling import GenerationSettings, answer_options, as_tuple
from selfextend_rag.engine.worker import Job, ModelWorker, Worker, in_thread, worker_of

__all__ = [
    "Answers",
    "BatchPrompt",
    "CachedPrefix",
    "Cancelled",
    "Engine",
    "FinishReason",
    "GenerationSettings",
    "Job",
    "ModelWorker",
    "Progress",
    "Reserve",
    "Run",
    "Usage",
    "Worker",
    "answer_options",
    "as_tuple",
    "end_tokens",
    "in_thread",
    "is_cancelled",
    "worker_of",
]
