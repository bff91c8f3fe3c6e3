"""L-Eval's metrics, as its ``Evaluation`` scripts compute them: exams, F1 and ROUGE, 0 to 100.

Source: github.com/OpenLMLab/LEval, the rules alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from selfextend_rag.evals.metrics.words import metric_library, normalized, word_f1

LETTERS = frozenset("ABCD")
MULTIPLE_CHOICE = frozenset(("coursera", "quality", "tpo"))
NO_ANSWER = "None"  # how an empty answer to a multiple-choice question is read

_MARKED_LETTER = re.compile(r"[A-Z](?=[\s.)])")
_STATED_NUMBER = re.compile(r"The answer is (\S+)")
_AROUND_OUTPUT = ("will be", "of the code", "is", "would be", "the value of", "the result of")
_JUDGEMENTS = ("true", "false")


class Read(NamedTuple):
    """How a prediction and its reference are read, before they are compared."""

    prediction: str
    reference: str


def exam(subset: str, prediction: str, output: str) -> float:
    """Return the score of an answer in a subset whose evaluation is ``exam``.

    Args:
        subset: its name; ``gsm100``, ``codeU`` and the multiple-choice ones have their own forms.
        prediction: the answer as it was generated.
        output: the record's.
    """
    return 100 * exact_match(*read(subset, prediction, output))


def read(subset: str, prediction: str, output: str) -> Read:
    """Return what is compared in a subset: letters, a number, code, or the texts as they are."""
    if subset in MULTIPLE_CHOICE:
        letters = chosen_letters(prediction, several=subset == "coursera")
        return Read(letters, reference_letters(output))
    if "gsm" in subset:
        return Read(final_number(prediction), final_number(output))
    if subset == "codeU":
        return Read(code_output(prediction, len(output.split())), plain_code(output))
    return Read(prediction, output)


def exact_match(prediction: str, reference: str) -> float:
    """Return L-Eval's exact match, which is none: 1, 0.25 or 0.

    Letters A to D must be the same; fewer of them, and no wrong one, give 0.25. Otherwise numbers
    must be equal, and of texts the reference must be part of the prediction, case and spaces aside.
    """
    wanted = normalized(reference, lower=False)
    if LETTERS.issuperset(wanted):
        given = normalized(prediction, lower=False)
        if given == wanted:
            return 1.0
        return 0.25 if set(given) <= set(wanted) else 0.0
    try:
        return float(float(prediction) == float(reference))
    except ValueError:
        wanted, given = (x.lower().replace(" ", "") for x in (reference, prediction))
        return float(wanted in given)


def chosen_letters(answer: str, *, several: bool) -> str:
    """Return the letters that an answer to a multiple-choice question chooses.

    With one right letter it is the first capital of ABCD, whatever word it begins: "Answer: C" is
    A. With several, those at the very start; then each capital before a space, a full stop or a
    bracket, up to the word "Question". No letter at all is read as A, and an empty answer as none.
    """
    if not answer.strip():
        return NO_ANSWER
    if answer in "ABCD":  # AB and BCD too, even where one letter is right
        return answer
    if not several:
        return next((letter for letter in answer if letter in LETTERS), "A")
    leading = _first_letters(answer)
    if len(leading) > 1:
        return "".join(sorted(set(leading)))
    rest = answer[len(leading) :].split("Question")[0]
    marked = {*leading, *_MARKED_LETTER.findall(rest)} & LETTERS
    if marked:
        return "".join(sorted(marked))
    first = next((i for i, letter in enumerate(rest) if letter in LETTERS), len(rest))
    return _first_letters(rest[first:]) or "A"


def _first_letters(text: str) -> str:
    others = (place for place, letter in enumerate(text) if letter not in LETTERS)
    return text[: next(others, len(text))]


def reference_letters(output: str) -> str:
    """Return the letters of a reference: those in its first word, or A."""
    first = (output.split() or [""])[0]
    return "".join(letter for letter in first if letter in LETTERS) or "A"


def final_number(text: str) -> str:
    """Return the digits of a worked answer's number, up to a decimal point; empty without any.

    It is what follows "The answer is", or else the last word with a digit of the first paragraph.
    Signs and thousands separators are dropped with all else that is no digit.
    """
    stated = _STATED_NUMBER.search(text)
    if stated:
        word = stated[1]
    else:
        words = reversed(text.split("\n\n")[0].split(" "))
        word = next((word for word in words if any(map(str.isdigit, word))), "")
    return "".join(filter(str.isdigit, word.split(".")[0]))


def plain_code(text: str) -> str:
    """Return a program's output without what may be written in several ways."""
    text = re.sub(r"\s+", " ", text)
    for mark in (",", "'", "\\", ".0"):
        text = text.replace(mark, "")
    for wide, narrow in (("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
        text = text.replace(wide, narrow)
    return text


def code_output(text: str, words: int) -> str:
    """Return the part of an answer that is read as a program's output.

    That is up to three words more than the ``words`` of the reference: the first after "the final
    output", or else the last of all.
    """
    text = plain_code(text)
    for said in (*_AROUND_OUTPUT, "printed"):
        text = text.replace(said, "")
    most = words + 3
    if "the final output" in text:
        found = re.split(r"\s+", text.split("the final output")[-1])[:most]
    else:
        found = re.split(r"\s+", text)[-most:]
    return " ".join(found)


def judgement(prediction: str, output: str) -> tuple[float, float]:
    """Return the scores of an answer about a novel: loyal to its world, and to ours.

    Both texts have the form ``True [fact: False]``, for what holds in the novel and in the world.
    """
    scores = []
    for given, wanted in zip(_halves(prediction), _halves(output), strict=True):
        words = ([x for x in _JUDGEMENTS if x in word][:1] for word in given.split())
        said = next((found[0] for found in words if found), "<error>")
        scores.append(100 * exact_match(said, wanted))
    return scores[0], scores[1]


def _halves(text: str) -> tuple[str, str]:
    before, _, after = text.lower().partition("[fact:")
    return before.strip(), after.partition("[fact:")[0][:-1].strip()


def f1(prediction: str, output: str) -> float:
    """Return the F1 of words in normal form."""
    return 100 * word_f1(prediction, output)


def rouge(prediction: str, output: str) -> dict[str, float]:
    """Return ROUGE-1, 2 and L of ``rouge_score`` without stemming, and their geometric mean.

    Its tokens are of the letters a to z and digits alone, so that Chinese has none.
    """
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = metric_library("rouge_score.rouge_scorer").RougeScorer(names, use_stemmer=False)
    found = scorer.score(output, prediction)
    scores = {name: 100 * float(found[name].fmeasure) for name in names}
    return {**scores, "geometric_mean": geometric_mean(list(scores.values()))}


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; a subset's is that of its *mean* ROUGE scores, not of records'."""
    product = 1.0
    for value in values:
        product *= value
    return float(product ** (1 / len(values)))
