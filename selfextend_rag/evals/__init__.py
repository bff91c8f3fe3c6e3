"""Evaluations: passkey and lookups by length and depth, perplexity by position, and comparisons.

``tasks`` builds prompts of an exact number of tokens, ``access`` lets a model answer them,
``runner`` measures, ``plots`` draws, ``grids`` is what ``selfextend-rag eval`` runs. ``metrics``
has what published benchmarks define. ``comparison`` puts whole documents next to retrieval on a
user's own questions.
"""

from selfextend_rag.evals.access import EvaluatedModel, HuggingFaceModel
from selfextend_rag.evals.comparison import (
    Asked,
    Comparison,
    Retrieval,
    compare,
    read_questions,
)
from selfextend_rag.evals.metrics import NllByPosition, is_exact_match, nll_by_position, perplexity
from selfextend_rag.evals.prose import Prose, depths, king_james
from selfextend_rag.evals.runner import Cell, run_lookups, run_perplexity
from selfextend_rag.evals.tasks import LookupTask, lookup_task, passkey_task

__all__ = [
    "Asked",
    "Cell",
    "Comparison",
    "EvaluatedModel",
    "HuggingFaceModel",
    "LookupTask",
    "NllByPosition",
    "Prose",
    "Retrieval",
    "compare",
    "depths",
    "is_exact_match",
    "king_james",
    "lookup_task",
    "nll_by_position",
    "passkey_task",
    "perplexity",
    "read_questions",
    "run_lookups",
    "run_perplexity",
]
