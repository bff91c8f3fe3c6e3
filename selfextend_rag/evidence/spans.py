"""Which part of which document each token came from, and the passages that an answer rests on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from selfextend_rag.documents import Document, Picture
from selfextend_rag.evidence.regions import Boxes, Heat, place_in_words

WINDOW = 12  # tokens that are looked at together
TOP = 3  # the most passages that are returned
_SINKS = 2  # tokens at the start of a prompt, which draw attention whatever they are
_CORE = 0.9  # share of a window's weight that its core has
_LEAST = 0.1  # share of the best passage's weight below which no passage is worth showing
_SHOWN = 160  # characters around a passage that are shown with it
_REACH = 240  # characters within which a sentence's border is looked for

_SENTENCE_END = re.compile(r"[.!?]+[\"'\u2019\u201d)\]]*(?=\s|$)|[\u3002\uff01\uff1f]+|(?=\n\s*\n)")
_SPACE = re.compile(r"\s+")

Integers = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenRanges:
    """For each token of a prompt's beginning, a document and a range of its characters.

    Within a document each token begins where the one before it ends. A token that holds only the
    rest of a character has an empty range at that character's end.
    """

    document: Integers  # counted from 0; -1 for titles, separators and the template
    start: Integers  # first character in the document's text
    end: Integers  # the character after the last
    # The number of a token's picture within its document, -1 of text; None where all is text. A
    # picture's tokens are at the character that it comes before.
    picture: Integers | None = None

    def __len__(self) -> int:
        return len(self.document)

    def within_other(self, tokens: Sequence[int], others: Sequence[int]) -> TokenRanges | None:
        """Return these ranges, of ``tokens``, for others, such as of a template with another date.

        Returns:
            None if they differ elsewhere than before the first document.
        """
        held = np.flatnonzero(self.document >= 0)
        kept = len(tokens) - (int(held[0]) if len(held) else 0)
        if kept > len(others) or tuple(tokens[-kept:]) != tuple(others[-kept:]):
            return None
        shift = len(others) - kept
        parts = ((-1, self.document), (0, self.start), (0, self.end))
        found = TokenRanges(*(np.append(np.full(shift, x), mine[-kept:]) for x, mine in parts))
        if self.picture is None:
            return found
        return replace(found, picture=np.append(np.full(shift, -1), self.picture[-kept:]))

    @classmethod
    def within(
        cls, ends: list[int], begins: list[int], starts: list[int], stops: list[int]
    ) -> TokenRanges | None:
        """Return ranges from where tokens end in a text that holds documents, in order.

        Args:
            ends: the character before which each token ends; it begins where the last one ended.
            begins: where in the text each document's character 0 is, or would be.
            starts: the first character of each document that the text has.
            stops: the character after its last.

        Returns:
            None if one token holds parts of two documents, which can't be separated.
        """
        last = np.asarray(ends, dtype=np.int64)
        first = np.concatenate([np.zeros(1, np.int64), last[:-1]]) if len(last) else last
        begin, start, stop = (np.asarray(x, dtype=np.int64) for x in (begins, starts, stops))
        # An empty range is the rest of a character that a token before it began.
        looked_up = np.where(first == last, first - 1, first)
        found = np.searchsorted(stop, looked_up, side="right")
        known = np.minimum(found, len(stop) - 1)
        inside = (found < len(stop)) & (start[known] < last)
        following = np.append(start[1:], np.iinfo(np.int64).max)
        if bool((inside & (following[known] < last)).any()):
            return None
        return cls(
            np.where(inside, known, -1),
            np.where(inside, np.maximum(first, start[known]) - begin[known], 0),
            np.where(inside, np.minimum(last, stop[known]) - begin[known], 0),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage of a document that the model looked at while it answered.

    It says where the answer's tokens drew from, not whether the answer is right.

    Args:
        document_id: the document's id.
        start: the passage's first character in the document's text.
        end: the character after its last.
        score: its share, from 0 to 1, of all attention that the answer paid to the documents.
        text: the passage.
        title: the document's title.
        location: where in its file the passage is, such as ``page 12`` or ``sheet Costs, row 40``;
            of a picture also where in it, such as ``page 3, top left``. None where that is not
            known, as in plain text.
        before: what the document says right before it, to be shown with it.
        after: what it says right after it.
        picture: the number of the picture that was looked at, counted from 0, among the document's
            ``pictures``, and ``location`` begins with its name; there is no text then. None for
            text.
        region: the part of the picture that was looked at most: left, top, right and bottom in its
            pixels, upright, right and bottom not included. None for text, and where the model does
            not keep the places of a picture's parts.
        heat: how the attention is spread over the picture; None where ``region`` is.
    """

    document_id: str
    start: int
    end: int
    score: float
    text: str
    title: str
    location: str | None = None
    before: str = field(default="", compare=False, repr=False)
    after: str = field(default="", compare=False, repr=False)
    picture: int | None = None
    region: tuple[int, int, int, int] | None = None
    heat: Heat | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, object]:
        """Return the passage as JSON values, without what is around it."""
        left_out = {"before", "after", "heat"}
        if self.picture is None:
            left_out |= {"picture", "region"}
        names = (x.name for x in fields(self))
        return {name: getattr(self, name) for name in names if name not in left_out}

    def overlay(self, documents: Sequence[Document]) -> bytes:
        """Return a PNG of the picture with what was looked at in red, and ``region`` in a frame.

        Args:
            documents: that were read, such as ``reading.documents``.

        Raises:
            DocumentError: the picture is damaged, or Pillow is not installed.
            ValueError: this is a passage of text, its document is not there, or the model does not
                keep the places of a picture's parts.
        """
        found = next((x for x in documents if x.id == self.document_id), None)
        if self.picture is None or found is None:
            what = "a passage of text" if found else f"of {self.document_id}, which is not there"
            raise ValueError(f"this evidence is {what}, so there is no picture to draw on")
        if self.heat is None:
            raise ValueError(
                f"where in {self.location} the answer looked is not known: the model does not keep "
                "the places of a picture's parts"
            )
        return self.heat.drawn_on(found.pictures[self.picture])


@dataclass(slots=True)
class _Span:
    document: int
    place: int
    start: int
    end: int
    score: float = 0.0
    picture: int | None = None


def find_evidence(
    mass: Weights,
    ranges: TokenRanges,
    documents: Sequence[Document],
    *,
    top: int = TOP,
    window: int = WINDOW,
    boxes: Callable[[Picture], Boxes | None] = lambda picture: None,
) -> tuple[Evidence, ...]:
    """Return the passages with the most weight, the heaviest first.

    The heaviest window of tokens of one document is cut to its core and extended to whole
    sentences, or whole words where sentences are long; then the heaviest of those that do not
    overlap it, and so on. Passages that come to overlap are one. Of equals, the first counts. None
    goes beyond a page or a row of a table, where a document knows them. A picture counts as a
    whole.

    Args:
        mass: the weight of each token of the prompt; tokens past ``ranges`` do not count.
        ranges: what the prompt's tokens hold of the documents.
        documents: in the order that the ranges count them in.
        top: how many passages to return at most; those with less than a tenth of the heaviest
            one's weight are left out.
        window: tokens to look at together.
        boxes: says where in a picture each of its tokens comes from; None where that is not known.
    """
    weights = document_weights(mass, ranges)
    total = float(weights.sum())
    if total <= 0.0:
        return ()
    places = _Places(ranges, documents)
    shares = weights / total
    pictures = _pictures(shares, ranges, documents)
    if ranges.picture is not None:
        weights = np.where(ranges.picture >= 0, 0.0, weights)
    windows = _Windows(weights, places.of_token, window)
    spans: list[_Span] = []
    while len(spans) < top and (found := windows.heaviest()) is not None:
        windows.exclude(slice(*found))  # may be white space that the passage leaves out
        span = _extended(*found, ranges, documents, places)
        if span is None:
            continue
        for other in [o for o in spans if _touch(o, span, documents)]:
            spans.remove(other)
            start, end = min(span.start, other.start), max(span.end, other.end)
            span = _Span(span.document, span.place, start, end)
        inside = _inside(span, ranges)
        span.score = float(weights[inside].sum()) / total
        windows.exclude(inside)
        spans.append(span)
    spans = sorted([*spans, *pictures], key=lambda s: (-s.score, s.document, s.start))[:top]
    least = max(_LEAST * spans[0].score, 1e-12) if spans else 0.0
    return tuple(
        _passage(s, documents[s.document])
        if s.picture is None
        else _of_picture(s, documents[s.document], shares, ranges, boxes)
        for s in spans
        if s.score >= least
    )


def document_weights(mass: Weights, ranges: TokenRanges) -> Weights:
    """Return the weights of the tokens that documents are in; 0 elsewhere and at the very start.

    The first tokens of a prompt draw attention whatever they are.
    """
    weights = np.where(ranges.document >= 0, mass[: len(ranges)], 0.0)
    weights[:_SINKS] = 0.0
    return weights


def _pictures(shares: Weights, ranges: TokenRanges, documents: Sequence[Document]) -> list[_Span]:
    """Return every picture with the share of attention that its tokens had."""
    if ranges.picture is None:
        return []
    found = []
    for number, document in enumerate(documents):
        own = (ranges.document == number) & (ranges.picture >= 0)
        scores = np.bincount(ranges.picture[own], shares[own], len(document.pictures))
        for index, picture in enumerate(document.pictures):
            score, start = float(scores[index]), picture.start
            found.append(_Span(number, -1, start, start, score, index))
    return found


def _of_picture(
    span: _Span,
    document: Document,
    shares: Weights,
    ranges: TokenRanges,
    boxes: Callable[[Picture], Boxes | None],
) -> Evidence:
    """Return a picture as evidence, with where in it the attention is if that is known."""
    assert span.picture is not None
    assert ranges.picture is not None
    picture = document.pictures[span.picture]
    named = picture.name or f"picture {span.picture + 1}"
    known, heat, region = boxes(picture), None, None
    if known is not None:
        own = (ranges.document == span.document) & (ranges.picture == span.picture)
        heat = Heat.of(shares[own], known)
    if heat is not None:
        region = heat.region_of(picture)
        named = ", ".join(x for x in (named, place_in_words(heat.region)) if x)
    place = document.id, span.start, span.end, span.score, "", document.title, named
    return Evidence(*place, picture=span.picture, region=region, heat=heat)


def _passage(span: _Span, document: Document) -> Evidence:
    start, end, text = span.start, span.end, document.text[span.start : span.end]
    where = document.location(start, end)
    before = document.text[max(0, start - _SHOWN) : start]
    after = document.text[end : end + _SHOWN]
    title = document.title
    return Evidence(document.id, start, end, span.score, text, title, where, before, after)


class _Places:
    """The pages and rows of documents; a document that does not know them is one place.

    Attributes:
        of_token: a number for the place of each token, another for each; -1 outside documents.
    """

    def __init__(self, ranges: TokenRanges, documents: Sequence[Document]) -> None:
        self._borders = [np.asarray(document.borders(), np.int64) for document in documents]
        self.of_token, following = ranges.document.copy(), len(documents)
        for number, borders in enumerate(self._borders):
            if len(borders):
                own = ranges.document == number
                # a token that reaches into a place is there: what is before may be a line end
                last = np.maximum(ranges.end[own] - 1, 0)
                self.of_token[own] = following + np.searchsorted(borders, last, side="right")
                following += len(borders) + 1
        if ranges.picture is not None:
            self.of_token[ranges.picture >= 0] = -1

    def around(self, document: int, character: int, length: int) -> tuple[int, int]:
        """Return the first character of the place of one, and the character after its last."""
        borders = self._borders[document]
        place = int(np.searchsorted(borders, character, side="right"))
        start = int(borders[place - 1]) if place else 0
        return start, int(borders[place]) if place < len(borders) else length


class _Windows:
    """All windows of tokens within one place of a document."""

    def __init__(self, weights: Weights, places: Integers, width: int) -> None:
        borders = np.concatenate([[0], np.flatnonzero(np.diff(places)) + 1, [len(places)]])
        lengths = np.diff(borders)
        first, last = np.repeat(borders[:-1], lengths), np.repeat(borders[1:], lengths)
        begin = np.arange(len(places))
        begins = (places >= 0) & (begin <= np.maximum(first, last - width))
        self.weights, self.start = weights, begin[begins]
        self.end = np.minimum(self.start + width, last[begins])
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        self.sums = sums[self.end] - sums[self.start]

    def heaviest(self) -> tuple[int, int] | None:
        """Return the core of the heaviest window, as first token and the token after its last."""
        if not len(self.sums):  # nothing but pictures
            return None
        best = int(self.sums.argmax())
        if self.sums[best] <= 0.0:
            return None
        first, last = int(self.start[best]), int(self.end[best])
        spare = (1.0 - _CORE) * float(self.sums[best])
        while last - first > 1:
            lighter_is_left = self.weights[first] <= self.weights[last - 1]
            spare -= float(self.weights[first if lighter_is_left else last - 1])
            if spare < 0.0:
                break
            first, last = (first + 1, last) if lighter_is_left else (first, last - 1)
        return first, last

    def exclude(self, tokens: slice) -> None:
        """Leave out all windows that hold one of these tokens."""
        self.sums[(self.start < tokens.stop) & (self.end > tokens.start)] = 0.0


def _extended(
    first: int, last: int, ranges: TokenRanges, documents: Sequence[Document], places: _Places
) -> _Span | None:
    """Return the whole sentences, or words, around tokens of one place; None if that is blank."""
    number, end = int(ranges.document[first]), int(ranges.end[last - 1])
    low, high = places.around(number, max(end - 1, 0), len(documents[number].text))
    text = documents[number].text[low:high]
    if not text.strip():
        return None
    end -= low
    start = max(0, min(int(ranges.start[first]) - low, end - 1))  # it may hold half a character
    if text[start:end].isspace():  # the word after it, or the last one of the place
        words = text.rstrip()
        start = next((n for n in range(end, len(words)) if not text[n].isspace()), len(words) - 1)
        end = start + 1
    while text[start].isspace():
        start += 1
    while text[end - 1].isspace():
        end -= 1
    place = int(places.of_token[first])
    return _Span(number, place, low + _left(text, start), low + _right(text, end))


def _left(text: str, start: int) -> int:
    """Return where the sentence around ``start`` begins, or its word."""
    reach = max(0, start - _REACH)
    # One character more is looked at: a point within a number ends no sentence.
    found = _SENTENCE_END.finditer(text, reach, start + 1)
    ends = [sentence.end() for sentence in found if sentence.end() <= start]
    if ends or reach == 0:
        border = ends[-1] if ends else 0
    else:
        spaces = [space.end() for space in _SPACE.finditer(text, reach, start)]
        border = spaces[-1] if spaces else start
    while border < start and text[border].isspace():
        border += 1
    return border


def _right(text: str, end: int) -> int:
    """Return where the sentence before ``end`` ends, or its word."""
    reach = min(len(text), end + _REACH)
    found = _SENTENCE_END.search(text, max(0, end - 1), reach)
    if found is not None and found.end() >= end:
        return len(text[: found.end()].rstrip())  # white space may be before a blank line
    if reach == len(text):
        return len(text.rstrip())
    space = _SPACE.search(text, end, reach)
    return end if space is None else space.start()


def _touch(one: _Span, other: _Span, documents: Sequence[Document]) -> bool:
    """Return whether two spans overlap, or have nothing but white space between them."""
    if one.place != other.place:
        return False
    first, second = sorted((one, other), key=lambda span: span.start)
    return not documents[one.document].text[first.end : second.start].strip()


def _inside(span: _Span, ranges: TokenRanges) -> slice:
    """Return the tokens of a span."""
    # A token with an empty range holds the rest of the character before it.
    begun = np.where(ranges.start == ranges.end, ranges.start - 1, ranges.start)
    held = (begun < span.end) & (ranges.end > span.start)
    tokens = np.flatnonzero(held & (ranges.document == span.document))
    return slice(int(tokens[0]), int(tokens[-1]) + 1)
