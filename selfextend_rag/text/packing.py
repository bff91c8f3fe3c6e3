"""Whole documents in one text, each under its title: their tokens, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfextend_rag.documents import Document
from selfextend_rag.evidence import TokenRanges
from selfextend_rag.text.codec import Encoded, TextCodec

BREAK = "\n\n"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What a model reads.

    Args:
        tokens: all of it, titles and what the template writes included.
        ranges: which part of a document each token holds; None without documents, if the tokenizer
            does not report it, or if the chat template changes what it is given.
        media: images that belong between the tokens; there are none yet.
    """

    tokens: tuple[int, ...]
    ranges: TokenRanges | None = None
    media: tuple[()] = ()


@dataclass(frozen=True, slots=True)
class JoinedDocuments:
    """Documents as one text.

    Args:
        text: the text.
        starts: where in it each document's own text starts.
        stops: where it stops, white space at its end left out.
    """

    text: str
    starts: tuple[int, ...]
    stops: tuple[int, ...]

    def packed(self, encoded: Encoded, after: str, trimmed: int = 0) -> Prompt:
        """Return tokens with their ranges.

        Args:
            encoded: the tokens of a text that holds this one.
            after: what comes before this text in it.
            trimmed: how many characters of white space this text lost at its beginning there.
        """
        tokens = tuple(encoded.ids)
        if encoded.ends is None:
            return Prompt(tokens)
        begins = [start + len(after) - trimmed for start in self.starts]
        starts = [max(begin, len(after)) for begin in begins]
        stops = [stop + len(after) - trimmed for stop in self.stops]
        return Prompt(tokens, TokenRanges.within(encoded.ends, begins, starts, stops))


def joined_documents(documents: Sequence[Document]) -> JoinedDocuments:
    """Return documents joined by blank lines, each under a heading of its own.

    The heading is ``# {title}``, on one line; a document without a title is called by its number,
    and one whose title has been seen gets a number behind it. A single document has no heading.

    Raises:
        ValueError: there are no documents.
    """
    if not documents:
        raise ValueError("there are no documents; a reading needs at least one")
    texts = [document.text.rstrip() for document in documents]
    if len(texts) == 1:
        return JoinedDocuments(texts[0], (0,), (len(texts[0]),))
    parts: list[str] = []
    starts: list[int] = []
    place = 0
    for heading, text in zip(_headings(documents), texts, strict=True):
        parts.append(f"# {heading}{BREAK}{text}")
        starts.append(place + len(parts[-1]) - len(text))
        place += len(parts[-1]) + len(BREAK)
    stops = [start + len(text) for start, text in zip(starts, texts, strict=True)]
    return JoinedDocuments(BREAK.join(parts), tuple(starts), tuple(stops))


def _headings(documents: Sequence[Document]) -> list[str]:
    """Return a heading for each document, no two alike."""
    titles = [" ".join(document.title.split()) for document in documents]
    given = set(titles)
    headings: dict[str, None] = {}
    for number, title in enumerate(titles, 1):
        heading = wanted = title or f"Document {number}"
        copies = 1
        while heading in headings or (heading != title and heading in given):
            copies += 1
            heading = f"{wanted} ({copies})"
        headings[heading] = None
    return list(headings)


@dataclass(frozen=True, slots=True)
class Border:
    """Where the blank line before a question belongs, and how to tokenize what follows.

    Vocabularies differ in what they join across it: some a full stop and the line ends after it,
    some all line ends in a row. Which way gives the tokens of the undivided text is measured.
    """

    left: str
    right: str
    after: str

    @classmethod
    def measured(cls, codec: TextCodec) -> Border:
        choices = [
            cls("", BREAK, ""),
            cls(BREAK, "", ""),
            cls("", BREAK, "a"),
            cls(BREAK, "", "\n"),
        ]
        head, tail = "That is the end.", "Question: Who?\nAnswer:"
        whole = codec.text(head + BREAK + tail)
        for choice in choices:
            before = codec.text(head + choice.left)
            if before + codec.text(choice.right + tail, after=choice.after) == whole:
                return choice
        return choices[0]
