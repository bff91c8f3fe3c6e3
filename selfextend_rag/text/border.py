"""Where documents end and a question begins."""

from __future__ import annotations

from dataclasses import dataclass

from selfextend_rag.text.codec import TextCodec
from selfextend_rag.text.packing import BREAK


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
