"""Metrics: those that benchmarks define, exactly as their own programs compute them, and ours.

``likelihood`` has exact answers and perplexity; ``words`` what several benchmarks share; each of
``longbench``, ``leval``, ``infinitebench`` and ``retrieval`` the rules of its benchmarks; ``check``
compares all of them with a file of official scores. Nothing here runs a model.
"""

from selfextend_rag.evals.metrics.likelihood import (
    NllByPosition,
    is_exact_match,
    nll_by_position,
    perplexity,
)

__all__ = ["NllByPosition", "is_exact_match", "nll_by_position", "perplexity"]
