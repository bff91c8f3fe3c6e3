"""A comparison as people read it: lines of text, and HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from selfextend_rag import display
from selfextend_rag.evals.comparison.results import Compared, Comparison, Found, Reply, Support

_QUOTE = 120  # characters of a passage that a line of text shows
_NAMES = {True: "right", False: "wrong", None: ""}


def lines(found: Comparison, worded: Callable[[str], str] = str) -> Iterator[str]:
    """Yield a comparison line by line: each question, both answers, and what is recommended.

    Args:
        found: the comparison.
        worded: rewords reasons and refusals; never what documents, questions and answers say.
    """
    for number, each in enumerate(found.questions, 1):
        yield f"{number}. {each.asked.question}"
        for row in _rows(each, found.retrieval.retriever, worded):
            yield "  ".join(row).rstrip()
        yield ""
    yield found.recommendation.text
    for reason in found.recommendation.reasons:
        yield from textwrap.wrap(
            worded(reason.text), 100, initial_indent="  - ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def _rows(
    each: Compared, retriever: str, worded: Callable[[str], str]
) -> Iterator[tuple[str, ...]]:
    width = max(len(retriever), len("rests on"))
    if each.asked.answers:
        yield "  ", "right".ljust(width), " | ".join(each.asked.answers)
    if each.whole is not None:
        yield "  ", "whole".ljust(width), _one_line(each.whole)
    for place in each.support:
        yield "  ", "rests on".ljust(width), _of_support(place, retriever)
    if each.retrieved is not None:
        yield "  ", retriever.ljust(width), _one_line(each.retrieved)
    elif each.refusal:
        yield "  ", retriever.ljust(width), f"no answer: {worded(each.refusal)}"
    for passage in each.passages:
        yield "  ", "brought".ljust(width), _of_passage(passage)


def _one_line(reply: Reply) -> str:
    text = " ".join(reply.text.split()) or "(nothing)"
    verdict = f" [{_NAMES[reply.right]}]" if reply.right is not None else ""
    return f"{text}{verdict} ({_cost(reply)})"


def _cost(reply: Reply) -> str:
    likelihood = (
        "" if reply.gold_nll is None else f"; right answer {reply.gold_nll:.2f} nats a token"
    )
    cut = "; cut off" if reply.finish_reason == "length" else ""
    kept = reply.run_tokens < reply.prompt_tokens
    tokens = f"{reply.prompt_tokens} tokens{f', {reply.run_tokens} of them new' if kept else ''}"
    return f"{tokens}; {reply.seconds:.2f} s{likelihood}{cut}"


def _of_support(place: Support, retriever: str) -> str:
    brought = "retrieved" if place.retrieved else "not retrieved"
    weight = f"{place.evidence.score:.0%}{'' if place.counts else ', little'}"
    return f'{place.document}, {place.place} ({weight}; {brought}): "{_short(place.evidence.text)}"'


def _of_passage(passage: Found) -> str:
    left = "" if passage.read else "; does not fit the window"
    where = f"{passage.document}, {passage.place}"
    return f'{where} (score {passage.score:.2f}{left}): "{_short(passage.text)}"'


def _short(text: str) -> str:
    return textwrap.shorten(text, _QUOTE, placeholder=" ...")


def parts(found: Comparison) -> list[str]:
    """Return a comparison as parts of an HTML page: the recommendation, a table, each question."""
    used, made = found.recommendation, found.retrieval
    about = (
        f"{found.model}, trained on {found.window} tokens; answers of at most "
        f"{found.max_new_tokens} tokens, greedy. Documents: {', '.join(found.documents)}, in "
        f"{made.of_passages} passages of at most {made.passage_words} words; {made.retriever} "
        f"brings {made.passages} for a question."
    )
    reasons = "".join(f"<li>{display.escaped(reason.text)}</li>" for reason in used.reasons)
    plan = [] if found.plan is None else [display.paragraph(found.plan.explain())]
    return [
        f"<p><b>{display.escaped(used.text)}</b></p><ul>{reasons}</ul>",
        display.paragraph(about),
        *plan,
        display.table(
            ("question", "right answer", "from whole documents", "", "from passages", ""),
            [_cells(each) for each in found.questions],
        ),
        *(part for each in found.questions for part in _details(each)),
    ]


def _cells(each: Compared) -> tuple[object, ...]:
    sides: list[object] = []
    for reply, why in ((each.whole, "not read"), (each.retrieved, each.refusal)):
        sides += [why, ""] if reply is None else [reply.text, _verdict(reply)]
    return each.asked.question, " | ".join(each.asked.answers), *sides


def _verdict(reply: Reply) -> str:
    return "\n".join(part for part in (_NAMES[reply.right], _cost(reply)) if part)


def _details(each: Compared) -> Iterator[str]:
    yield f"<h3>{display.escaped(each.asked.question)}</h3>"
    if each.support:
        yield display.paragraph("The answer from whole documents rests on:")
    for place in each.support:
        evidence, brought = place.evidence, "retrieved" if place.retrieved else "not retrieved"
        source = f"{place.document}, {place.place} ({evidence.score:.0%}; {brought})"
        yield display.quotation(evidence.before, evidence.text, evidence.after, source)
    if each.passages:
        yield display.paragraph("Retrieval brought:")
    for found in each.passages:
        left = "" if found.read else "; does not fit the window"
        source = f"{found.document}, {found.place} (score {found.score:.2f}{left})"
        yield display.quotation("", found.text, "", source)
