"""What the metrics of several benchmarks have in common: normal forms of text, F1, libraries."""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from selfextend_rag.errors import SelfExtendError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class MissingMetricLibrary(SelfExtendError, ImportError):
    """A library that defines a metric is not installed."""


def metric_library(name: str) -> Any:
    """Return a library that defines a metric, imported when it is first needed.

    Raises:
        MissingMetricLibrary: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingMetricLibrary(
            f'this metric is defined by {name}; pip install "selfextend-rag[evals]"'
        ) from error


def normalized(text: str, *, lower: bool = True) -> str:
    """Return a text without punctuation, articles and repeated space, as SQuAD's evaluation has it.

    Punctuation is ASCII's alone, and is taken out before articles are: quotation marks of other
    kinds stay part of their word, and ``a.`` is an article.
    """
    text = (text.lower() if lower else text).translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def overlap_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return the F1 of two bags of tokens, from 0 to 1; 0 where nothing is common."""
    common = (Counter(prediction) & Counter(reference)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def word_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the words of two texts in normal form, from 0 to 1."""
    return overlap_f1(normalized(prediction).split(), normalized(reference).split())
