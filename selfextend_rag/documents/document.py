"""The document type, and how much documents have to do with a question."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfextend_rag.documents.encoding import normalize_newlines
from selfextend_rag.documents.files import read_file
from selfextend_rag.errors import DocumentError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Scripts without spaces between words count by character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole text to read, and where it comes from; see ``from_file`` and ``from_text``.

    Two documents are equal when their text, title, id and source are; metadata does not count.

    Args:
        text: the text, never blank; line ends are ``\\n``.
        title: a name for people and prompts; may be empty.
        id: stable name of the content, the same on every machine and run.
        source: where it was read from, as it was given; None when there was no file.
        metadata: more about the document, JSON values by preference; copied.

    Raises:
        DocumentError: the text is blank, or text or title holds a lone surrogate, which no
            tokenizer accepts.
    """

    text: str
    title: str
    id: str
    source: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        name = self.source or self.title or "the document"
        if not self.text.strip():
            raise DocumentError(f"{name} has no text; leave it out, or give it some")
        for what, text in (("", self.text), ("the title of ", self.title)):
            surrogate = _LONE_SURROGATE.search(text)
            if surrogate:
                raise DocumentError(
                    f"{what}{name!a} holds the lone surrogate {surrogate.group()!r} at character "
                    f"{surrogate.start()}, which is no text; decode the original bytes again"
                )
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
    ) -> Document:
        """Return a document of this text, with line ends ``\\r\\n`` and ``\\r`` made ``\\n``.

        Args:
            text: the whole text; nothing but its line ends is changed.
            title: a name for people and prompts.
            source: where it comes from, such as a path or an address.
            id: a name of your own; by default 16 hexadecimal digits of the text's SHA-256.
            metadata: more about the document.

        Raises:
            DocumentError: the text is blank, or holds a lone surrogate.
        """
        text = normalize_newlines(text)
        if id is None:
            id = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return cls(text, title, id, source, metadata or {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, encoding: str | None = None) -> Document:
        """Return the document in a text, Markdown, HTML or PDF file.

        What the file is, its content says first and its name second. Plain text and Markdown are
        kept as they are. Of HTML, scripts, styles, navigation and drawings are left out, and
        headings, lists and table rows are written as in Markdown. Of a PDF, the text of
        every page is taken; there is no text recognition.

        ``metadata`` has ``format`` (``text``, ``markdown``, ``html``, ``pdf``) and, but for PDF,
        ``encoding`` and ``encoding_from`` (``given``, ``byte order mark``, ``content``,
        ``declaration``, ``guess``; a guess is logged as a warning); for HTML also
        ``removed_elements`` (how many of each); for PDF ``pages``, ``pages_without_text`` (their
        numbers, from 1; logged as a warning), ``page_offsets`` (where in the text each page
        starts) and ``unreadable_characters``.

        Args:
            path: the file.
            encoding: its character encoding, when you know better than detection does; PDF files
                have their own and ignore it.

        Raises:
            DocumentError: there is no such file, it is empty, binary or damaged, its kind is not
                one of these four, or it has no text.
        """
        content = read_file(path, encoding=encoding)
        # A name that is no text, as file names may be, still makes a title that is.
        title = _LONE_SURROGATE.sub("\ufffd", content.title)
        return cls.from_text(
            content.text, title=title, source=os.fsdecode(path), metadata=content.metadata
        )


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
