"""What a comparison comes to: a recommendation, and the figures that it rests on.

Nothing is recommended without right answers, or of fewer than `LEAST` questions. Of more, a side
that is right more often counts as better where chance would make such a difference in less than one
of twenty cases, by the sign test of the questions that one side alone answers rightly. Where no
side is better, and one at least is right in half of the questions, the cheaper one is recommended
if it is right at least as often.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfextend_rag.evals.comparison.figures import Figures, count
from selfextend_rag.evals.comparison.reasons import reasons_of
from selfextend_rag.evals.comparison.results import (
    Choice,
    Compared,
    Recommendation,
    RetrievalUsed,
)

LEAST = 10
"""The fewest questions with right answers that anything is recommended of."""
TO_USE = ("bm25", "embeddings")
"""The retrievers that can be recommended: chance, and what knows the answers, are bounds."""
CHANCE = 0.05
"""How often chance may make a difference that counts."""
_CHEAPER = 0.9  # share of the other side's seconds that is less beyond what clocks differ by


def recommended(
    questions: Sequence[Compared], retrieval: RetrievalUsed, read_seconds: float, refusal: str
) -> Recommendation:
    """Return what to use for such questions.

    Args:
        questions: what was asked, and what came of it.
        retrieval: how passages were found.
        read_seconds: what reading the documents whole took.
        refusal: why they were not read whole, if they were not.
    """
    figures = Figures(questions, retrieval, read_seconds)
    choice, text = _decided(figures, refusal)
    return Recommendation(choice, text, tuple(reasons_of(figures, refusal)))


def _decided(figures: Figures, refusal: str) -> tuple[Choice, str]:
    """Return the choice, and the sentence that says it."""
    judged = len(figures.judged)
    if refusal:
        return "undecided", "No comparison: the documents can't be read whole as they are."
    if not figures.both:
        return "undecided", "No comparison: retrieval could answer no question."
    if figures.everything:
        return "undecided", (
            "No comparison: the documents are so short that retrieval brought all of them. Read "
            "them whole, or ask for fewer or shorter passages."
        )
    if figures.retrieval.retriever not in TO_USE:
        return "undecided", (
            f"No recommendation: {figures.retrieval.retriever} is a bound, and no retriever to use."
        )
    if not judged:
        return "undecided", (
            "No recommendation: it is not known which answers are right. Give the right ones "
            f"(--gold, or a file of questions), of {LEAST} questions or more."
        )
    if judged < LEAST:
        return "undecided", (
            f"No recommendation: {count(judged, 'question')} with a right answer "
            f"{'is' if judged == 1 else 'are'} too few. Ask {LEAST} or more of the kind that you "
            "have."
        )
    return _judged(figures)


def _judged(figures: Figures) -> tuple[Choice, str]:
    """Return the choice where there are enough questions."""
    (whole, retrieved), (all_whole, all_retrieved) = figures.right(), figures.seconds()
    if not whole + retrieved:
        return "undecided", (
            "No recommendation: no answer was right either way. The model may be too weak for "
            "these questions, or words its answers otherwise than the right ones are given."
        )
    if figures.chance < CHANCE:
        if whole > retrieved:
            return "whole", "Read the documents whole: that is right more often, beyond chance."
        return "retrieval", "Retrieve: that is right more often, beyond chance."
    if 2 * max(whole, retrieved) < len(figures.judged):
        return "undecided", (
            "No recommendation: both were wrong more often than not, and neither is right more "
            "often beyond chance. A better model may matter more than either."
        )
    if whole > retrieved:
        return "undecided", (
            "No recommendation: whole documents were right more often, but not beyond chance. Ask "
            "more questions."
        )
    if all_retrieved <= _CHEAPER * all_whole:
        said = "as often" if whole == retrieved else "at least as often"
        return "retrieval", f"Retrieve: that was right {said}, and cheaper for these questions."
    if whole < retrieved:
        return "undecided", (
            "No recommendation: retrieval was right more often, but not beyond chance, and it is "
            "not cheaper for so many questions. Ask more."
        )
    if all_whole <= _CHEAPER * all_retrieved:
        return "whole", (
            "Read the documents whole: that was right as often, and cheaper for these questions, "
            "as the reading is kept."
        )
    return "either", "Either will do: both were right as often, and took about as long."
