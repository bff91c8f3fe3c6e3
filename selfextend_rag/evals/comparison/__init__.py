"""Whole documents against retrieval, on a user's own documents and questions.

``asked`` reads questions, ``passages`` makes and finds passages, ``fitting`` chooses those that fit
the window, ``run`` has both sides answered, ``results`` is what came of it, ``places`` looks for
evidence among passages, ``advice`` recommends with the ``reasons`` that ``figures`` give, ``shown``
writes it all as text and HTML.
"""

from selfextend_rag.evals.comparison.asked import Asked, QuestionsError, read_questions
from selfextend_rag.evals.comparison.passages import RETRIEVERS, Retrieval
from selfextend_rag.evals.comparison.results import Compared, Comparison, Recommendation
from selfextend_rag.evals.comparison.run import compare

__all__ = [
    "RETRIEVERS",
    "Asked",
    "Compared",
    "Comparison",
    "QuestionsError",
    "Recommendation",
    "Retrieval",
    "compare",
    "read_questions",
]
