"""LongBench's metrics, as its ``metrics.py`` and ``eval.py`` compute them, oddities included.

Scores are from 0 to 1 for one prediction and one reference; LongBench reports 100 times the mean.
Source: github.com/THUDM/LongBench.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from selfextend_rag.evals.metrics.words import metric_library, normalized_zh, overlap_f1, word_f1

FIRST_LINE_TASKS = frozenset(("lsht", "samsum", "trec", "triviaqa"))
"""Tasks of which the first line alone is scored; everywhere else an answer keeps its lines."""


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F of ROUGE-L as PyPI's ``rouge`` 1.0.1 has it.

    That counts *sets* of words over sentences cut at full stops: repeated words count once, the
    order of sentences is ignored, and case matters. Where it fails, the score is 0: for a text
    without words, and for one so long that its recursion ends (about a thousand words without a
    full stop). The latter would depend on the caller's own depth, hence the thread.
    """

    def compute() -> float:
        rouge = metric_library("rouge").Rouge(metrics=["rouge-l"])
        try:
            found = rouge.get_scores([prediction], [reference], avg=True)
        except (ValueError, RecursionError):
            return 0.0
        return float(found["rouge-l"]["f"])

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


def rouge_l_zh(prediction: str, reference: str) -> float:
    """Return `rouge_l` of the words that ``jieba`` finds, its first ones being those of spaces."""
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(reference)))


def qa_f1(prediction: str, reference: str) -> float:
    """Return the F1 of words in normal form."""
    return word_f1(prediction, reference)


def qa_f1_zh(prediction: str, reference: str) -> float:
    """Return the F1 of the words that ``jieba`` finds, without marks; digits keep their width."""
    first, second = (
        [normalized_zh(word) for word in chinese_words(text)] for text in (prediction, reference)
    )
    return overlap_f1([word for word in first if word], [word for word in second if word])


def chinese_words(text: str) -> list[str]:
    """Return the words of a Chinese text by ``jieba``, whose notes on its dictionary are silenced.

    Raises:
        MissingMetricLibrary: it is not installed.
    """
    jieba = metric_library("jieba")
    jieba.setLogLevel(logging.WARNING)
    return list(jieba.cut(text, cut_all=False))


def classification(prediction: str, reference: str, all_classes: Sequence[str]) -> float:
    """Return 1 over the number of classes named, if the reference is among them, or else 0.

    Names that are part of the reference are dropped from a list while it is gone through, which
    skips the name after each one dropped: some of them count although they should not.
    """
    named = [name for name in all_classes if name in prediction]
    place = 0
    while place < len(named):
        name = named[place]
        if name in reference and name != reference:
            named.remove(name)
        place += 1  # past the one that took the dropped one's place, too
    return 1 / len(named) if reference in named else 0.0


def share_of_numbers(prediction: str, reference: str) -> float:
    """Return which share of the numbers in a prediction is the reference, as written."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(reference)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, reference: str, prefix: str = "Paragraph ") -> float:
    """Return which share of the numbers is the one of ``Paragraph 7`` in the reference.

    Raises:
        ValueError: the reference names no paragraph.
    """
    found = re.search(re.escape(prefix) + r"(\d+)", reference)
    if found is None:
        raise ValueError(f"the reference must have the form {prefix}1, got {reference!r}")
    return share_of_numbers(prediction, found[1])


def retrieval_zh(prediction: str, reference: str) -> float:
    """Return the same for references such as ``段落7``."""
    return retrieval(prediction, reference, prefix="段落")


def code_similarity(prediction: str, reference: str) -> float:
    """Return the similarity of the first line of code and the reference, in hundredths.

    That is ``fuzzywuzzy``'s ratio where ``python-Levenshtein`` is not installed: difflib's, rounded
    to whole per cent. With it, or by ``rapidfuzz``, it is another number. A line that holds a
    backtick, ``#`` or ``//`` is taken for no code.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((x for x in lines if not any(mark in x for mark in ("`", "#", "//"))), "")
    if code == reference:
        return 1.0
    return round(100 * difflib.SequenceMatcher(None, code, reference).ratio()) / 100


_OF_TASKS: dict[Callable[[str, str], float], str] = {
    qa_f1: "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
    qa_f1_zh: "multifieldqa_zh",
    rouge_l: "gov_report qmsum multi_news samsum",
    rouge_l_zh: "dureader vcsum",
    retrieval: "passage_retrieval_en",
    retrieval_zh: "passage_retrieval_zh",
    share_of_numbers: "passage_count",
    code_similarity: "lcc repobench-p",
}
METRICS = {task: metric for metric, tasks in _OF_TASKS.items() for task in tasks.split()}
"""The metric of each task; ``trec`` and ``lsht`` are scored by `classification`."""
CLASSIFIED = frozenset(("lsht", "trec"))


def score(
    task: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """Return the score of one prediction in one of the 21 tasks, from 0 to 1: its best answer's.

    Args:
        task: LongBench's name of it.
        prediction: the answer as it was generated.
        answers: the references.
        all_classes: the names of classes, for the tasks that classify.

    Raises:
        ValueError: the task is none of LongBench, or lacks its classes.
    """
    if task in FIRST_LINE_TASKS:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if task in CLASSIFIED:
        if not all_classes:
            raise ValueError(f"{task} needs the names of all classes")
        return max((classification(prediction, x, all_classes) for x in answers), default=0.0)
    if task not in METRICS:
        known = ", ".join(sorted([*METRICS, *CLASSIFIED]))
        raise ValueError(f"{task!r} is no task of LongBench; it has {known}")
    metric = METRICS[task]
    return max((metric(prediction, answer) for answer in answers), default=0.0)
