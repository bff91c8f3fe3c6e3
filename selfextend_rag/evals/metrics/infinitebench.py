"""InfiniteBench's metrics, as its ``compute_scores.py`` computes them, from 0 to 1.

Source: arXiv 2402.13718, github.com/OpenBMB/InfiniteBench, the rules alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from selfextend_rag.evals.metrics.retrieval import first_number, word_is_value
from selfextend_rag.evals.metrics.words import (
    metric_library,
    normalized_zh,
    overlap_f1,
    word_f1,
)

_NUMBER = re.compile(r"\d+\.\d+|\d+")
_OPTION_SAID = ("answer is:", "answer:", "answer is", "option is")
_BUG_SAID = ("answer is:", "is:", "answer:", "correct option is:")

Answers = Sequence[object]


def chosen_option(prediction: str, answers: Answers) -> float:
    """Return whether an answer to a multiple-choice question names the right option.

    Its first letter counts if it is A to D, whatever word it begins; then what follows "answer is"
    and the like, which is looked for in small letters; then the first word that is such a letter,
    or several of them in a row.

    Args:
        prediction: the answer as it was generated.
        answers: text and letter of the right option.
    """
    said = prediction.strip()
    if not said:
        return 0.0
    if said[0] in "ABCD":
        return float(said[0] in answers)
    if said in answers:
        return 1.0
    said = _spaced(said, "\n\"'.,?!{}")
    for before in _OPTION_SAID:
        if before in said:
            return _begins(said, before, answers)
    letters = (word for word in said.split() if word in "ABCD")
    return float(next(letters, None) in answers)


def found_bug(prediction: str, answers: Answers) -> float:
    """Return whether an answer names the function with an error, or its option.

    A letter counts with a full stop or a colon after it, at the very start, or after "answer is:"
    and the like; alone it does not.

    Args:
        prediction: the answer as it was generated.
        answers: name of the function, and the letter of its option.
    """
    said = prediction.strip()
    name, letter = answers
    if said[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for word in ("Option", "option"):
        said = said.replace(word, " ")
    said = _spaced(said, "\n`'\"-*")
    for before in _BUG_SAID:
        if before in said:
            return _begins(said, before, (letter, name))
    return 0.0


def _spaced(text: str, marks: str) -> str:
    """Return a text with spaces for marks, none of them doubled."""
    return re.sub(" {2,}", " ", _without(text, marks))


def _without(text: str, marks: str) -> str:
    """Return a text with spaces for marks."""
    return text.translate(str.maketrans(marks, " " * len(marks)))


def _begins(said: str, before: str, answers: Answers) -> float:
    """Return whether what follows a text and one character more begins with an answer."""
    rest = said.partition(before)[2]
    return float(bool(rest) and any(rest[1:].startswith(str(answer)) for answer in answers))


def run_result(prediction: str, answers: Answers) -> float:
    """Return whether the last word is the whole number that a program gives."""
    words = _without(prediction, "\n.`'\":").split()
    wanted = int(str(answers[0]))
    try:
        return float(bool(words) and int(words[-1]) == wanted)
    except ValueError:
        return 0.0


def found_number(prediction: str, answers: Answers) -> float:
    """Return whether the first number is the right one, signs left out.

    A fraction where a whole number is right ends the benchmark's own program; here it is wrong.
    """
    first = _NUMBER.search(prediction)
    return float(first is not None and float(first[0]) == float(str(answers[0])))


def leading_values(prediction: str, answers: Answers) -> float:
    """Return the share of intermediate values that are right, up to the first that is not.

    Signs are no part of a value, so that negative ones are never right.
    """
    wanted = answers[0] if isinstance(answers[0], list) else answers
    found = [int(x) for x in re.findall(r"[0-9]+", prediction)]
    right = 0
    for one, other in zip(wanted, found, strict=False):
        if int(str(one)) != other:
            break
        right += 1
    return right / len(wanted)


def names_character(prediction: str, answers: Answers) -> float:
    """Return whether the character's name, in capitals, is a word of the answer in capitals."""
    return float(answers[0] in _without(prediction, "\n:\"'.,?!{}").upper().split())


def best_f1(prediction: str, answers: Answers) -> float:
    """Return the best F1 of words in normal form."""
    return max((word_f1(prediction, str(answer)) for answer in answers), default=0.0)


def best_f1_zh(prediction: str, answers: Answers) -> float:
    """Return the best F1 of Chinese characters, without marks."""
    said = normalized_zh(prediction)
    return max((overlap_f1(said, normalized_zh(str(answer))) for answer in answers), default=0.0)


def rouge_lsum(prediction: str, answers: Answers) -> float:
    """Return the best F of ROUGE-Lsum by ``rouge_score``: sentences are lines, and not stemmed."""
    scorer = metric_library("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"])
    scores = (scorer.score(str(answer), prediction)["rougeLsum"].fmeasure for answer in answers)
    return max(map(float, scores), default=0.0)


def first_digits(prediction: str, answers: Answers) -> float:
    """Return whether the first run of digits is the right one, digit by digit."""
    return first_number(prediction, str(answers[0]))


def names_value(prediction: str, answers: Answers) -> float:
    """Return whether the value is a word of the prediction."""
    return word_is_value(prediction, str(answers[0]))


METRICS: dict[str, Callable[[str, Answers], float]] = {
    "passkey": first_digits,
    "number_string": first_digits,
    "kv_retrieval": names_value,
    "longbook_sum_eng": rouge_lsum,
    "longbook_choice_eng": chosen_option,
    "longbook_qa_eng": best_f1,
    "longbook_qa_chn": best_f1_zh,
    "longdialogue_qa_eng": names_character,
    "math_find": found_number,
    "math_calc": leading_values,
    "code_run": run_result,
    "code_debug": found_bug,
}
"""The metric of each of the twelve tasks."""


def score(task: str, prediction: str, answers: object) -> float:
    """Return the score of one prediction, from 0 to 1.

    Args:
        task: InfiniteBench's name of it.
        prediction: the answer as it was generated.
        answers: what is right, or a list of it; of options, the text and the letter.

    Raises:
        ValueError: the task is none of InfiniteBench, or nothing is right.
    """
    if task not in METRICS:
        raise ValueError(f"{task!r} is no task of InfiniteBench; it has {', '.join(METRICS)}")
    given = answers if isinstance(answers, list | tuple) else [answers]
    if not given:
        raise ValueError(f"{task} needs a right answer")
    return METRICS[task](prediction, given)
