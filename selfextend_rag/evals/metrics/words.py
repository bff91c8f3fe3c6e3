"""What the metrics of several benchmarks have in common: normal forms of text, F1, libraries."""

from __future__ import annotations

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from selfextend_rag.errors import SelfExtendError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

_CJK = "\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces, where each character is a word
# A unit may follow its number at once, as in 5km; what begins with a letter is one word, as A12 is.
_ANSWER_WORD = re.compile(
    rf"(?<![\w.,])-?\d+(?:[.,:/]\d+)*|\d+|[{_CJK}]|[^\W\d_{_CJK}][^\W_{_CJK}]*"
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ARTICLE_WORDS = frozenset(("a", "an", "the"))


_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏."
)  # 《 and 〈 〉 are not among them
_WITHOUT_MARKS = str.maketrans("", "", string.punctuation + _CHINESE_PUNCTUATION)


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


def normalized_zh(text: str) -> str:
    """Return a Chinese text in small letters without marks and spaces; digits keep their width."""
    return "".join(text.lower().translate(_WITHOUT_MARKS).split())


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


def answer_words(text: str) -> list[str]:
    """Return the words and numbers of an answer, articles left out unless there is nothing else.

    Case and width of characters do not count. Unlike in `normalized`, a number keeps its sign and
    its decimal point, so that 3.5 is not 35, and loses its commas of thousands alone.
    """
    words = _all_words(text)
    return _without_articles(words) or words


def holds_answer(prediction: str, answers: Sequence[str]) -> bool:
    """Return whether the words of one of the answers are in the prediction, in a row.

    As in MDQA's best subspan, the prediction may say more; but it is looked at whole, and a word or
    number must be there itself and not as a part of another, as 31 is of 1310.
    """
    given = _all_words(prediction)
    for answer in answers:
        words = _all_words(answer)
        bare = _without_articles(words)
        if bare and _spaced(bare) in _spaced(_without_articles(given)):
            return True
        if words and not bare and _spaced(words) in _spaced(given):  # A of A, B and C
            return True
    return False


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the F1 of `answer_words` with the answer that it is best for, from 0 to 1."""
    given = answer_words(prediction)
    return max((overlap_f1(given, answer_words(answer)) for answer in answers), default=0.0)


def _all_words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    return [
        word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
        for word in _ANSWER_WORD.findall(folded)
    ]


def _without_articles(words: Sequence[str]) -> list[str]:
    return [word for word in words if word not in _ARTICLE_WORDS]


def _spaced(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "
