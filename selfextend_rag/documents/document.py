"""Documents: whole texts, the files they come from, and what of these they do not say."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from selfextend_rag.documents.content import (
    LONE_SURROGATE,
    PAGES,
    SEVERITIES,
    Content,
    Location,
    Pages,
    Remark,
    Severity,
)
from selfextend_rag.documents.encoding import normalize_newlines
from selfextend_rag.documents.files import bytes_of, read_bytes
from selfextend_rag.documents.pictures import Picture
from selfextend_rag.errors import DocumentError

logger = logging.getLogger(__name__)

# Scripts without spaces between words count by character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text to read, and where it comes from; see ``from_file`` and ``from_text``.

    It may have pictures, for a vision model, which other models refuse. Two documents are equal
    when their text, pictures, title, id and source are; metadata does not count.

    Args:
        text: the text, blank only where there are pictures; line ends are ``\\n``.
        title: a name for people and prompts; may be empty.
        id: stable name of the content, the same on every machine and run.
        source: where it was read from, as it was given; None when there was no file.
        metadata: more about the document, JSON values by preference; copied.
        remarks: what the file has that the text does not say.
        locations: where in the file the text comes from, by their starts.
        pictures: the pictures, each before the character of the text at which it starts.

    Raises:
        DocumentError: there is neither text nor picture, or text or title holds a lone surrogate,
            which no tokenizer accepts.
        ValueError: locations or pictures are out of order, or one starts after the text.
    """

    text: str
    title: str
    id: str
    source: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False)
    remarks: tuple[Remark, ...] = field(default=(), compare=False)
    locations: tuple[Location, ...] = field(default=(), compare=False)
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        name = self.source or self.title or "the document"
        if not self.text.strip() and not self.pictures:
            raise DocumentError(f"{name} has no text; leave it out, or give it some")
        for what, text in (("", self.text), ("the title of ", self.title)):
            if surrogate := LONE_SURROGATE.search(text):
                raise DocumentError(
                    f"{what}{name!a} holds the lone surrogate {surrogate.group()!r} at character "
                    f"{surrogate.start()}, which is no text; decode the original bytes again"
                )
        for what, places in (("locations", self.locations), ("pictures", self.pictures)):
            starts = [place.start for place in places]
            if starts != sorted(starts) or starts[-1:] > [len(self.text)]:
                raise ValueError(f"the {what} of {name!a} are not in the order of its text")
        object.__setattr__(self, "metadata", dict(self.metadata))

    @classmethod
    def from_text(
        cls,
        text: str,
        *,
        title: str = "",
        source: str | None = None,
        id: str | None = None,
        metadata: Mapping[str, object] | None = None,
        remarks: Sequence[Remark] = (),
        locations: Sequence[Location] = (),
        pictures: Sequence[Picture] = (),
    ) -> Document:
        """Return a document of this text, with line ends ``\\r\\n`` and ``\\r`` made ``\\n``.

        Args:
            text: the whole text; nothing but its line ends is changed.
            title: a name for people and prompts.
            source: where it comes from, such as a path or an address.
            id: a name of your own; by default 16 hexadecimal digits of the text's SHA-256, or of
                that of text and pictures.
            metadata: more about the document.
            remarks: what the text does not say.
            locations: where its parts come from; their starts count in the text with line ends
                made ``\\n``.
            pictures: its pictures; so do theirs.

        Raises:
            DocumentError: there is neither text nor picture, or it holds a lone surrogate.
        """
        text = normalize_newlines(text)
        if id is None:
            id = text_id("\0".join([text, *(f"{x.start} {x.digest}" for x in pictures)]))
        parts = tuple(remarks), tuple(locations), tuple(pictures)
        return cls(text, title, id, source, metadata or {}, *parts)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        encoding: str | None = None,
        ocr: bool = False,
        strict: bool | Severity = False,
        progress: Callable[[int, int], None] | None = None,
        pages: Pages = "text",
    ) -> Document:
        """Return the document in a file: text, HTML, PDF, an office file, mail or an e-book.

        What the file is, its content says first and its name second. Plain text and Markdown are
        kept as they are. Of HTML, scripts, styles and menus are left out, headings and lists
        are written as in Markdown, values of tables stay in their column, deleted text is
        ``~~old~~``, and text that the page hides is read and counted. Of a PDF, the text of
        every page is taken, values of forms and free-text notes included; a page may take 20
        seconds; with ``ocr``, pages that are pictures are recognised. Of mail, the headers that
        people read and the form of the text that says most are taken, and messages in it; of an
        e-book, its chapters.
        Of Word, PowerPoint, Excel and OpenDocument files, notes, comments, charts and every sheet
        are taken too. ``docs/documents.md`` says more of each kind.

        What the text does not say is in ``remarks``; those above a note are also logged as
        warnings. ``metadata`` has ``format`` (``text``, ``markdown``, ``html``, ``pdf``, ``eml``,
        ``epub``, ``csv``, ``ipynb``, ``python``, ...) and, of text and HTML, ``encoding`` and
        ``encoding_from`` (``given``, ``byte order mark``, ``content``, ``declaration``,
        ``guess``); for PDF ``pages``, ``pages_without_text`` and ``attachments``, the names of
        attached files, as for mail.

        Args:
            path: the file.
            encoding: its character encoding, when you know better than detection does; PDF, office
                files, mail and e-books say theirs, and ignore it.
            ocr: recognise text on pages of PDF files that have none, such as scans, or a tenth of
                it unreadable; needs ``pip install "selfextend-rag[ocr]"``, and takes seconds for
                each such page. It reads Latin, Chinese and Japanese writing; other scripts come out
                wrong, which the remark then calls a loss.
            strict: refuse a file with remarks as severe as this or more: ``"warning"``, or
                ``"loss"``, the same as True.
            progress: called with the pages read and those in all, of a PDF, whose scans take long.
            pages: ``"auto"`` for a vision model: pages of PDF files without text, or with a tenth
                of it unreadable, become ``pictures``, and so do PNG, JPEG, WebP and TIFF files,
                which are refused otherwise; ``"images"``: all pages of PDF files do. Needs
                ``pip install "selfextend-rag[vision]"``. By default text alone is read.

        Raises:
            DocumentError: there is no such file, it is empty, binary or damaged, its kind is not
                one of these, it has no text, or a remark is too severe.
            ValueError: pages are to be pictures and recognised too, or ``pages`` is none of these.
        """
        name = os.fsdecode(path)
        _check_pages(pages, ocr)
        content = read_bytes(bytes_of(name), name, encoding, ocr, progress, pages)
        return cls._from_content(content, name, strict)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        name: str,
        *,
        encoding: str | None = None,
        ocr: bool = False,
        strict: bool | Severity = False,
        progress: Callable[[int, int], None] | None = None,
        pages: Pages = "text",
    ) -> Document:
        """Return the document in the bytes of a file, as ``from_file`` reads it.

        Args:
            data: the whole file.
            name: its name, which becomes the ``source``.
            encoding: see ``from_file``.
            ocr: see ``from_file``.
            strict: see ``from_file``.
            progress: see ``from_file``.
            pages: see ``from_file``.

        Raises:
            DocumentError, ValueError: as ``from_file`` does.
        """
        _check_pages(pages, ocr)
        content = read_bytes(data, name, encoding, ocr, progress, pages)
        return cls._from_content(content, name, strict)

    @classmethod
    def _from_content(cls, content: Content, name: str, strict: bool | Severity) -> Document:
        # A name that is no text, as file names may be, still makes a title that is.
        document = cls.from_text(
            content.text,
            title=LONE_SURROGATE.sub("\ufffd", content.title),
            source=name,
            metadata=content.metadata,
            remarks=content.remarks,
            locations=content.locations,
            pictures=content.pictures,
        )
        document.check_whole(strict)
        for remark in document.shortcomings:
            logger.warning("%s: %s", name, remark.message)
        return document

    @property
    def shortcomings(self) -> tuple[Remark, ...]:
        """Return the remarks above a note: what people read and the text may lack."""
        return tuple(remark for remark in self.remarks if remark.severity != "note")

    def check_whole(self, strict: bool | Severity = True) -> None:
        """Refuse the document if a remark is as severe as this or more; see ``from_file``.

        Raises:
            DocumentError: one is; the message has them all.
            ValueError: there is no such severity.
        """
        least = "loss" if strict is True else strict
        if not least:
            return
        if least not in SEVERITIES:
            raise ValueError(f"strict is a bool or one of {', '.join(SEVERITIES)}, not {least!r}")
        severe = SEVERITIES[SEVERITIES.index(least) :]
        refused = [remark.message for remark in self.remarks if remark.severity in severe]
        if refused:
            raise DocumentError(
                f"{self.source or self.title or self.id} is not read whole: "
                f"{'; '.join(refused)}; mend the file, or read it without strict="
            )

    def location(self, start: int, end: int) -> str | None:
        """Return where in the file a passage is, such as ``pages 3-4`` or ``sheet Costs, row 40``.

        Args:
            start: the passage's first character in the text.
            end: the character after its last.

        Returns:
            None where the text has no locations, as plain text has none.
        """
        if not self.locations:
            return None
        (first, from_row), (last, to_row) = self._place(start), self._place(max(start, end - 1))
        if first != last:
            (kind, _, a), (other, _, b) = first.rpartition(" "), last.rpartition(" ")
            counted = kind == other and a.isdecimal() and b.isdecimal()
            if counted and from_row is to_row is None:
                return f"{kind}s {a}-{b}"
            return f"{_at(first, from_row)} to {_at(last, to_row)}"
        if from_row is None and to_row is not None:  # from the name of a sheet on
            from_row = next(place.row for place in self.locations if place.start > start)
        if to_row not in (None, from_row):
            return f"{first}, rows {from_row}-{to_row}"
        return _at(first, from_row)

    def borders(self) -> list[int]:
        """Return the characters at which another page, or another row of a table, begins."""
        found: list[int] = []
        ends = [*(location.start for location in self.locations[1:]), len(self.text)]
        for location, end in zip(self.locations, ends, strict=False):
            line = location.start
            while location.row is not None and (line := self.text.find("\n", line, end - 1) + 1):
                found.append(line)
            found.append(end)
        return found[:-1]

    def _place(self, character: int) -> tuple[str, int | None]:
        """Return the name of the location of a character, and its row where rows are counted."""
        index = bisect_right(self.locations, character, key=lambda location: location.start) - 1
        location = self.locations[max(index, 0)]
        if location.row is None:
            return location.name, None
        return location.name, location.row + self.text.count("\n", location.start, character)

    def to_dict(self) -> dict[str, object]:
        """Return the document as JSON values, as far as its metadata is."""
        values = {name: getattr(self, name) for name in ("text", "title", "id", "source")}
        values["metadata"] = copy.deepcopy(dict(self.metadata))
        values["remarks"] = tuple(map(asdict, self.remarks))
        values["locations"] = tuple(map(asdict, self.locations))
        if self.pictures:  # most have none, nor had any that earlier releases wrote
            values["pictures"] = [picture.to_dict() for picture in self.pictures]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Document:
        """Return the document that ``to_dict`` made these values of.

        Raises:
            ValueError, TypeError: they are values of no document.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"a document is a dict of its values, not {values!r}")
        if not all(isinstance(values.get(name), str) for name in ("text", "title", "id")):
            raise TypeError("a document has a text, a title and an id, all of them texts")
        remarks = tuple(Remark(**remark) for remark in values.get("remarks", ()))
        locations = tuple(Location(**location) for location in values.get("locations", ()))
        pictures = tuple(Picture.from_dict(picture) for picture in values.get("pictures", ()))
        parts = {"remarks": remarks, "locations": locations, "pictures": pictures}
        return cls(**{**values, **parts})


def text_id(text: str) -> str:
    """Return the id of a document of this text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def refuse_pictures(
    documents: Sequence[Document], who: str = "a model of text can't look at"
) -> None:
    """Refuse documents with pictures where their text alone would be used.

    Args:
        documents: the documents.
        who: who can't do what with pictures, as the end of a sentence.

    Raises:
        DocumentError: the message says which document, and what can be done.
    """
    for document in documents:
        if count := len(document.pictures):
            name = document.title or document.source or document.id
            raise DocumentError(
                f"{name} has {count} picture{'s' * (count > 1)}, which {who}; load a vision model "
                "to read it, or have the text of its pages recognised with ocr=True"
            )


def _check_pages(pages: Pages, ocr: bool) -> None:
    if pages not in PAGES:
        raise ValueError(f"pages is one of {', '.join(PAGES)}, not {pages!r}")
    if ocr and pages != "text":
        raise ValueError(
            f"ocr=True has pages recognised as text, and pages={pages!r} has them looked at as "
            "pictures; choose one"
        )


def _at(name: str, row: int | None) -> str:
    return name if row is None else f"{name}, row {row}"


def word_relevance(question: str, texts: Sequence[str]) -> list[float]:
    """Return the BM25 score of each text; 0 for all when they share no word with the question.

    Raises:
        ImportError: bm25s is not installed; the extras of the frameworks bring it.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "ranking documents by their words needs bm25s, which is not installed; install it "
            "with: pip install bm25s (the extras langchain and llama-index bring it), or rank by "
            "embeddings"
        ) from error
    corpus = [_WORD.findall(text.lower()) for text in texts]
    known = {word for words in corpus for word in words}
    asked = [word for word in _WORD.findall(question.lower()) if word in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]
