"""What a reader of files returns: text, where its parts come from, and what it does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal

from selfextend_rag.documents.pictures.picture import Picture

Severity = Literal["note", "warning", "loss"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "loss")

Pages = Literal["text", "auto", "images"]
"""What is read of pages: their text; pictures where there is none; or pictures of all."""
PAGES: tuple[Pages, ...] = ("text", "auto", "images")

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


_ONE = {"s": "", "es": "", "are": "is", "were": "was", "have": "has", "do": "does"}
_MANY = {word: word for word in _ONE}


def counted(count: int, says: str) -> str:
    """Return a sentence on so many things, such as ``3 slide{s} {have} no text``."""
    return f"{count} {says.format_map(_ONE if count == 1 else _MANY)}"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a file that its document's text does not say.

    Args:
        kind: what it is about, a short fixed name such as ``pages without text``.
        message: a sentence that says what was found and what became of it.
        severity: ``note``: nothing that people read is missing (scripts of a web page);
            ``warning``: the text may be wrong, or something besides it was left out (a guessed
            encoding, an attached file); ``loss``: text that people see is missing or unreadable.
        count: how many things it speaks of.
        location: where, in the words of ``Location.name``, such as ``page 3``; None: all over.
    """

    kind: str
    message: str
    severity: Severity = "note"
    count: int = 1
    location: str | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is one of {', '.join(SEVERITIES)}, not {self.severity!r}")
        texts = (self.kind, self.message, self.location or "")
        if not (all(isinstance(text, str) for text in texts) and isinstance(self.count, int)):
            raise TypeError(f"a remark has a kind, a message, a count and a place, not {self}")

    def to_dict(self) -> dict[str, object]:
        """Return the remark as JSON values."""
        return asdict(self)


def remarked(
    severity: Severity, kind: str, count: int, says: str, more: str = "", place: str | None = None
) -> Remark:
    """Return a remark on so many things; see ``counted``, which ``more`` is written after."""
    return Remark(kind, counted(count, says) + more, severity, count, place)


def remarks_on(
    counts: Mapping[str, int],
    kinds: Mapping[str, tuple[Severity, str]],
    more: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Remark, ...]:
    """Return a remark on each kind that was counted, in the order of the kinds.

    Args:
        counts: how many there are of each kind.
        kinds: how severe each is, and a sentence for ``remarked``.
        more: what is written after the sentence.
    """
    return tuple(
        remarked(severity, kind, counts[kind], says, more.get(kind, ""))
        for kind, (severity, says) in kinds.items()
        if counts.get(kind)
    )


@dataclass(frozen=True, slots=True)
class Location:
    """Where the text from ``start`` on comes from, up to the start of the next location.

    Args:
        start: a character of the document's text.
        name: the place, such as ``page 3``, ``slide 2`` or ``sheet Costs``.
        row: in a table, the number of the row that starts here; each line after it is the next.
    """

    start: int
    name: str
    row: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.start, int) and isinstance(self.row or 0, int)):
            raise TypeError(f"a location starts at a character and a row, not {self}")
        if not isinstance(self.name, str) or self.start < 0:
            raise ValueError(f"a location has a name and a start from 0 on, not {self}")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file says.

    Args:
        text: the text.
        title: the title that the file gives itself, or "".
        metadata: what else is known of it, JSON values.
        remarks: what the text does not say.
        locations: where its parts come from, by ``start``; empty where a line number says enough.
        pictures: what is to be looked at, each before its ``start`` in the text.
    """

    text: str
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    locations: tuple[Location, ...] = ()
    pictures: tuple[Picture, ...] = ()
