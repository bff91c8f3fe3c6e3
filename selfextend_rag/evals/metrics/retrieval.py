"""Metrics of benchmarks in which a fact is looked up, as their own programs compute them.

All but RULER's are 0 or 1. Sources: github.com/nelson-liu/lost-in-the-middle,
github.com/DachengLi1/LongChat, github.com/NVIDIA/RULER, github.com/OpenBMB/InfiniteBench,
github.com/booydar/babilong and github.com/visual-haystacks/vhs_benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfextend_rag.evals.metrics.words import normalized

_PLACES = "bathroom bedroom garden hallway kitchen office"
_LABELS = {
    "qa1 qa2 qa3 qa4 qa11 qa12 qa13": _PLACES,
    "qa5": "bill fred jeff mary apple football milk",
    "qa6 qa9 qa17 qa18": "no yes",
    "qa7": "none one three two",
    "qa8": "apple football milk nothing",
    "qa10": "maybe no yes",
    "qa14": "bedroom cinema kitchen office park school",
    "qa15": "cat mouse sheep wolf",
    "qa16": "gray green white yellow",
    "qa19": "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w",
    "qa20": "bedroom bored garden hungry kitchen thirsty tired",
}
BABILONG_LABELS = {
    task: frozenset(labels.split()) for tasks, labels in _LABELS.items() for task in tasks.split()
}
"""What can be an answer in each task of BABILong, in small letters."""

_SAID = re.compile(r"[\w'-]+")
_KV_BREAKS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))


def best_subspan_em(prediction: str, answers: Sequence[str]) -> float:
    """Return whether the first line holds one of the answers, both in normal form (MDQA).

    An answer of articles and punctuation alone is empty in that form, and held by every line.
    """
    line = normalized(prediction.split("\n")[0].strip())
    return float(any(normalized(answer) in line for answer in answers))


def says_word(prediction: str, word: str) -> float:
    """Return whether a word is among those of the prediction, case aside (Visual Haystacks)."""
    return float(word.lower() in _SAID.findall(prediction.lower()))


def holds_value(prediction: str, value: str) -> float:
    """Return whether a value is anywhere in the prediction, case aside (KV retrieval).

    A longer string that holds it counts, and so does a later line.
    """
    return float(value.lower() in prediction.lower())


def last_number(prediction: str, expected: int) -> float:
    """Return whether the last run of digits is the expected number (LongEval's lines)."""
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) == expected)


def names_topic(prediction: str, topic: str) -> float:
    """Return whether the topic is named, both in normal form (LongEval's topics).

    The benchmark itself asks a ChatGPT model for a judgement, which no rule reproduces.
    """
    return float(normalized(topic) in normalized(prediction))


def string_match_all(prediction: str, outputs: Sequence[str]) -> float:
    """Return the share of the outputs that are in the prediction, case aside (RULER)."""
    given = prediction.lower()
    return sum(output.lower() in given for output in outputs) / len(outputs)


def string_match_part(prediction: str, outputs: Sequence[str]) -> float:
    """Return whether any of the outputs is in the prediction, case aside (RULER's questions)."""
    given = prediction.lower()
    return float(any(output.lower() in given for output in outputs))


def printable(prediction: str) -> str:
    """Return a prediction as RULER scores it: control characters are line ends."""
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()


def word_is_value(prediction: str, answer: str) -> float:
    """Return whether the value is a word of the prediction (InfiniteBench's KV retrieval)."""
    return float(answer in prediction.translate(_KV_BREAKS).split())


def first_number(prediction: str, answer: str) -> float:
    """Return whether the first run of digits is the answer, digit by digit (its pass keys)."""
    numbers = re.findall(r"[0-9]+", prediction)
    return float(answer == (numbers[0] if numbers else ""))


def only_label(prediction: str, target: str, question: str, task: str) -> float:
    """Return whether the target is the only label that the first sentence names (BABILong).

    Labels that the question names do not count, and labels are looked for within words too: "none"
    names "one". A target of several labels, by comma, wants exactly those.

    Raises:
        ValueError: the task has no labels.
    """
    if task not in BABILONG_LABELS:
        raise ValueError(f"BABILong's {task!r} has no labels; {', '.join(BABILONG_LABELS)} have")
    said = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    asked = question.lower()
    named = {x for x in BABILONG_LABELS[task] if x in said and x not in asked}
    target = target.lower()
    several = "," in target and len(target) > 3  # "e,n" is a path, and one label
    return float(named == ({*target.split(",")} if several else {target}))
