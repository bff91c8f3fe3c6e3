"""The sentences that a recommendation rests on, each with its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from selfextend_rag.evals.comparison.figures import Figures, count
from selfextend_rag.evals.comparison.results import Reason

DIFFERING = 6
"""The fewest questions that, all on one side, are beyond chance: 2 / 2 ** 6 is below 0.05."""


def reasons_of(figures: Figures, refusal: str) -> Iterator[Reason]:
    """Yield what there is to say, what decides first."""
    if refusal:
        yield Reason("refusal", f"Whole documents are refused: {refusal}")
    parts: tuple[Callable[[Figures], Iterator[Reason]], ...]
    parts = (_of_answers, _of_places, _of_gold_in_passages, _of_likelihood, _of_cost, _of_limits)
    for part in parts:
        yield from part(figures)


def _of_answers(figures: Figures) -> Iterator[Reason]:
    judged = len(figures.judged)
    if judged:
        (whole, retrieved), (first, second) = figures.right(), figures.alone()
        chance = figures.chance
        yield Reason(
            "right",
            f"Of {count(judged, 'question')} with a right answer, whole documents answered "
            f"{whole} rightly, and retrieval {retrieved}.",
            {"questions": judged, "whole": whole, "retrieved": retrieved},
        )
        if first + second:
            yield Reason(
                "alone",
                f"Whole documents alone were right in {first} of them, and retrieval alone in "
                f"{second}; chance makes that difference or a larger one in {chance:.1%} of cases.",
                {"whole": first, "retrieved": second, "chance": chance},
            )
    elif figures.both:
        same = sum(x.text.split() == y.text.split() for _, x, y in figures.both)
        yield Reason(
            "same",
            f"Both gave the same answer to {same} of {count(len(figures.both), 'question')}.",
            {"questions": len(figures.both), "same": same},
        )


def _of_places(figures: Figures) -> Iterator[Reason]:
    """Yield whether retrieval brought what answers from whole documents rest on."""
    judged = bool(figures.judged)
    found = [each for each in figures.both if each[0].support and (each[1].right or not judged)]
    if not found:
        return
    kind = "right answers" if judged else "answers"
    for name, what in (
        ("apart", "rest on passages in several places that retrieval did not bring together"),
        ("missed", "rest most on a passage that retrieval did not bring"),
    ):
        such = [each for each in found if getattr(each[0], name)]
        wrong = sum(retrieved.right is False for _, _, retrieved in such)
        then = f"; in {wrong} of these retrieval was wrong" if judged and such else ""
        yield Reason(
            name,
            f"{len(such)} of {len(found)} {kind} from whole documents {what}, by the model's "
            f"attention{then}.",
            {"answers": len(found), name: len(such), "retrieval_wrong": wrong},
        )


def _of_gold_in_passages(figures: Figures) -> Iterator[Reason]:
    there = [each for each in figures.questions if each.answer_in_documents]
    if there:
        brought = sum(bool(each.answer_in_passages) for each in there)
        yield Reason(
            "brought",
            f"In {count(len(there), 'question')} the right answer is in the documents word for "
            f"word; in {brought} of them it was in what retrieval brought.",
            {"questions": len(there), "brought": brought},
        )


def _of_likelihood(figures: Figures) -> Iterator[Reason]:
    pairs = [(x.gold_nll, y.gold_nll) for _, x, y in figures.both]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if known:
        whole, retrieved = (math.fsum(side) / len(known) for side in zip(*known, strict=True))
        yield Reason(
            "likelihood",
            f"The right answers are at {whole:.2f} nats a token after whole documents, and at "
            f"{retrieved:.2f} after passages; less is likelier.",
            {"whole": whole, "retrieved": retrieved},
        )


def _of_cost(figures: Figures) -> Iterator[Reason]:
    both = figures.both
    if not both:
        return
    prompts = [math.fsum(reply.prompt_tokens for reply in side) / len(both) for side in (
        [x for _, x, _ in both], [y for _, _, y in both])]  # fmt: skip
    whole, retrieved = (
        math.fsum(reply.seconds for reply in side) / len(both)
        for side in ([x for _, x, _ in both], [y for _, _, y in both])
    )
    yield Reason(
        "tokens",
        f"The model saw {prompts[1]:.0f} tokens a question after retrieval, "
        f"{prompts[1] / prompts[0]:.0%} of the {prompts[0]:.0f} of whole documents.",
        {"whole": prompts[0], "retrieved": prompts[1], "share": prompts[1] / prompts[0]},
    )
    once = figures.read_seconds
    even = math.ceil(once / (retrieved - whole)) if retrieved > whole else None
    later = (
        f"with {even} questions or more on the same documents, reading them whole takes less"
        if even is not None
        else "retrieval takes less, however many are asked"
    )
    yield Reason(
        "seconds",
        f"Reading whole documents took {once:.2f} s once, and then {whole:.2f} s a question; "
        f"retrieval took {retrieved:.2f} s a question. At this pace, {later}.",
        {"read_once": once, "whole": whole, "retrieved": retrieved, "even_at": even},
    )


def _of_limits(figures: Figures) -> Iterator[Reason]:
    """Yield what a reader should know before believing the rest."""
    both, judged = figures.both, len(figures.judged)
    cut = sum("length" in (x.finish_reason, y.finish_reason) for _, x, y in both)
    if cut:
        yield Reason(
            "cut_off",
            f"{count(cut, 'question')} had an answer that was cut off at its longest.",
            {"questions": cut},
        )
    fewer = sum(sum(x.read for x in each.passages) < len(each.passages) for each, _, _ in both)
    if fewer:
        yield Reason(
            "fewer_passages",
            f"For {count(fewer, 'question')} fewer passages than asked for fit the window.",
            {"questions": fewer},
        )
    if refused := sum(bool(each.refusal) for each in figures.questions):
        yield Reason(
            "refused",
            f"Retrieval could not answer {count(refused, 'question')}.",
            {"questions": refused},
        )
    if judged:
        yield Reason(
            "questions",
            f"Fewer than {DIFFERING} questions that one side alone answers rightly are never "
            "beyond chance, and all that is said holds for questions like these.",
            {"questions": judged},
        )
