"""Token ids in, token ids out, on one causal language model."""

from selfextend_rag.engine.batch import BatchGeneration, BatchPrompt
from selfextend_rag.engine.constraint import TokenConstraint
from selfextend_rag.engine.engine import Engine
from selfextend_rag.engine.generation import FinishReason, Generation, Usage
from selfextend_rag.engine.prefix import CachedPrefix
from selfextend_rag.engine.settings import GenerationSettings

__all__ = [
    "BatchGeneration",
    "BatchPrompt",
    "CachedPrefix",
    "Engine",
    "FinishReason",
    "Generation",
    "GenerationSettings",
    "TokenConstraint",
    "Usage",
]
