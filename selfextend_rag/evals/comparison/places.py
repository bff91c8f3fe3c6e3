"""Where in the documents passages and evidence are, and whether the one holds the other."""

from __future__ import annotations

from collections.abc import Sequence

from selfextend_rag.documents import Document
from selfextend_rag.evals.comparison.passages import Index
from selfextend_rag.evals.comparison.results import RESTS_ON, Found, Support
from selfextend_rag.evidence import Evidence
from selfextend_rag.llm.budget import name_of


def source_of(document: Document) -> str:
    """Return what to call a document: where it was read from, or else its title or id."""
    return document.source or name_of(document)


def place_of(document: Document, start: int, end: int) -> str:
    """Return where in its file a passage is; the lines where nothing else is known."""
    if known := document.location(start, end):
        return known
    first = document.text.count("\n", 0, start) + 1
    last = first + document.text.count("\n", start, end)
    return f"line {first}" if first == last else f"lines {first}-{last}"


def found_of(index: Index, place: int, score: float, read: Sequence[int]) -> Found:
    """Return a passage that retrieval brought, white space around it left out.

    Args:
        index: has the passages.
        place: which of them it is.
        score: what it was ranked by.
        read: the passages that the model saw.
    """
    passage = index.passages[place]
    document, text = index.documents[passage.document], index.text(passage)
    start = passage.start + len(text) - len(text.lstrip())
    end = start + len(text.strip())
    where = place_of(document, start, end)
    return Found(
        source_of(document), document.id, where, start, end, score, text.strip(), place in read
    )


def support_of(
    index: Index, evidence: Sequence[Evidence], read: Sequence[int]
) -> tuple[Support, ...]:
    """Return what an answer rests on, each with whether the passages that were read hold it."""
    return tuple(_support(index, each, evidence[0], read) for each in evidence)


def _support(index: Index, evidence: Evidence, first: Evidence, read: Sequence[int]) -> Support:
    # copies of a document have one id
    same = [n for n, x in enumerate(index.documents) if x.id == evidence.document_id]
    document = index.documents[same[0]]
    return Support(
        source_of(document),
        place_of(document, evidence.start, evidence.end),
        evidence,
        counts=evidence.score >= RESTS_ON * first.score,
        retrieved=any(_covered(index, n, evidence, read) for n in same),
        within=tuple(
            place
            for place, passage in enumerate(index.passages)
            if passage.document in same
            and passage.start < evidence.end
            and evidence.start < passage.end
        ),
    )


def _covered(index: Index, number: int, evidence: Evidence, read: Sequence[int]) -> bool:
    """Return whether passages of a document, neighbors joined, hold all of the evidence."""
    reached = evidence.start
    for place in sorted(read):
        passage = index.passages[place]
        if passage.document == number and passage.start <= reached < passage.end:
            reached = passage.end
    return reached >= evidence.end
