"""What a comparison comes to: a recommendation, and the figures that it rests on.

Nothing is recommended without right answers, or of fewer than `LEAST` questions. Of more, a side
that is right more often counts as better where chance would make such a difference in less than one
of twenty cases, by the sign test of the questions that one side alone answers rightly. Where no
side is better, the cheaper one is recommended if it is right at least as often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from selfextend_rag.evals.comparison.results import (
    Choice,
    Compared,
    Reason,
    Recommendation,
    Reply,
    RetrievalUsed,
)

LEAST = 10
"""The fewest questions with right answers that anything is recommended of."""
TO_USE = ("bm25", "embeddings")
"""The retrievers that can be recommended: chance, and what knows the answers, are bounds."""
CHANCE = 0.05
"""How often chance may make a difference that counts."""
_DIFFERING = 6  # the fewest questions that, all on one side, are beyond chance: 2 / 2 ** 6 < 0.05
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
    figures = _Figures(questions, retrieval, read_seconds)
    choice, text = _decided(figures, refusal)
    return Recommendation(choice, text, tuple(_reasons(figures, refusal)))


@dataclass(frozen=True, slots=True)
class _Figures:
    """What the questions come to."""

    questions: Sequence[Compared]
    retrieval: RetrievalUsed
    read_seconds: float

    @property
    def both(self) -> list[tuple[Compared, Reply, Reply]]:
        """Return the questions that both sides answered."""
        return [
            (each, each.whole, each.retrieved)
            for each in self.questions
            if each.whole is not None and each.retrieved is not None
        ]

    @property
    def judged(self) -> list[tuple[Compared, Reply, Reply]]:
        """Return those of them whose right answers are known."""
        return [found for found in self.both if found[1].right is not None]

    def right(self) -> tuple[int, int]:
        """Return how often whole documents and retrieval were right."""
        judged = self.judged
        return sum(bool(x.right) for _, x, _ in judged), sum(bool(y.right) for _, _, y in judged)

    def alone(self) -> tuple[int, int]:
        """Return how often whole documents alone were right, and how often retrieval alone."""
        pairs = [(x.right, y.right) for _, x, y in self.judged]
        return pairs.count((True, False)), pairs.count((False, True))

    @property
    def chance(self) -> float:
        """Return how often chance makes such a difference or a larger one, by the sign test."""
        first, second = self.alone()
        return sign_test(first, second)

    def seconds(self) -> tuple[float, float]:
        """Return what all questions took, from whole documents with the reading, and retrieved."""
        whole = math.fsum(x.seconds for _, x, _ in self.both)
        return self.read_seconds + whole, math.fsum(y.seconds for _, _, y in self.both)

    @property
    def everything(self) -> bool:
        """Return whether retrieval brought all there is to each question."""
        of = self.retrieval.of_passages
        return all(sum(x.read for x in each.passages) == of for each, _, _ in self.both)


def sign_test(first: int, second: int) -> float:
    """Return how often fair coins fall so unevenly, or more so: two-sided, 1 without any."""
    tosses, fewer = first + second, min(first, second)
    tail = sum(math.comb(tosses, heads) for heads in range(fewer + 1))
    return min(1.0, tail / 2.0 ** (tosses - 1))


def _decided(figures: _Figures, refusal: str) -> tuple[Choice, str]:
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
            f"No recommendation: {_count(judged, 'question')} with a right answer "
            f"{'is' if judged == 1 else 'are'} too few. Ask {LEAST} or more of the kind that you "
            "have."
        )
    return _judged(figures)


def _judged(figures: _Figures) -> tuple[Choice, str]:
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


def _reasons(figures: _Figures, refusal: str) -> Iterator[Reason]:
    """Yield what there is to say, what decides first."""
    if refusal:
        yield Reason("refusal", f"Whole documents are refused: {refusal}")
    parts: tuple[Callable[[_Figures], Iterator[Reason]], ...]
    parts = (_of_answers, _of_places, _of_gold_in_passages, _of_likelihood, _of_cost, _of_limits)
    for part in parts:
        yield from part(figures)


def _of_answers(figures: _Figures) -> Iterator[Reason]:
    judged = len(figures.judged)
    if judged:
        (whole, retrieved), (first, second) = figures.right(), figures.alone()
        chance = figures.chance
        yield Reason(
            "right",
            f"Of {_count(judged, 'question')} with a right answer, whole documents answered "
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
            f"Both gave the same answer to {same} of {_count(len(figures.both), 'question')}.",
            {"questions": len(figures.both), "same": same},
        )


def _of_places(figures: _Figures) -> Iterator[Reason]:
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


def _of_gold_in_passages(figures: _Figures) -> Iterator[Reason]:
    there = [each for each in figures.questions if each.answer_in_documents]
    if there:
        brought = sum(bool(each.answer_in_passages) for each in there)
        yield Reason(
            "brought",
            f"In {_count(len(there), 'question')} the right answer is in the documents word for "
            f"word; in {brought} of them it was in what retrieval brought.",
            {"questions": len(there), "brought": brought},
        )


def _of_likelihood(figures: _Figures) -> Iterator[Reason]:
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


def _of_cost(figures: _Figures) -> Iterator[Reason]:
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


def _of_limits(figures: _Figures) -> Iterator[Reason]:
    """Yield what a reader should know before believing the rest."""
    both, judged = figures.both, len(figures.judged)
    cut = sum("length" in (x.finish_reason, y.finish_reason) for _, x, y in both)
    if cut:
        yield Reason(
            "cut_off",
            f"{_count(cut, 'question')} had an answer that was cut off at its longest.",
            {"questions": cut},
        )
    fewer = sum(sum(x.read for x in each.passages) < len(each.passages) for each, _, _ in both)
    if fewer:
        yield Reason(
            "fewer_passages",
            f"For {_count(fewer, 'question')} fewer passages than asked for fit the window.",
            {"questions": fewer},
        )
    if refused := sum(bool(each.refusal) for each in figures.questions):
        yield Reason(
            "refused",
            f"Retrieval could not answer {_count(refused, 'question')}.",
            {"questions": refused},
        )
    if judged:
        yield Reason(
            "questions",
            f"Fewer than {_DIFFERING} questions that one side alone answers rightly are never "
            "beyond chance, and all that is said holds for questions like these.",
            {"questions": judged},
        )
        whole, retrieved = figures.right()
        if 0 < 2 * max(whole, retrieved) < judged:
            yield Reason(
                "weak",
                "Both were wrong more often than not: a better model may matter more than either.",
                {"whole": whole, "retrieved": retrieved, "questions": judged},
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
