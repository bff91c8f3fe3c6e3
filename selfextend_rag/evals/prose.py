"""The prose that surrounds facts: the shipped King James Bible, or a text of the caller's."""

from __future__ import annotations

import bisect
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from transformers import PreTrainedTokenizerBase

SENTENCE_BORDER = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z\"'(])")


def king_james() -> str:
    """Return the shipped text: Genesis, Exodus, 1 and 2 Samuel and Acts (public domain)."""
    data = files("selfextend_rag.evals") / "data" / "king-james.txt.gz"
    return gzip.decompress(data.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Prose:
    """A text as token ids, with the places where facts can be put in.

    Attributes:
        ids: the tokens of the whole text.
        borders: offsets into ``ids`` where a sentence, with the space or empty line before it,
            starts; in rising order, the first is 0.
        starts: the same without the empty line, where a document may start.
    """

    ids: tuple[int, ...]
    borders: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def tokenize(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> Prose:
        """Return ``text`` as tokens of a transformers tokenizer, without special tokens.

        Sentences are tokenized one by one, each with the space or empty line before it, so that
        what is put between two of them leaves their tokens as they are.
        """
        ids: list[int] = []
        borders: list[int] = []
        starts: list[int] = []
        break_ids = encode(tokenizer, "\n\n")
        for paragraph in re.split(r"\n\s*\n", text):
            sentences = SENTENCE_BORDER.split(" ".join(paragraph.split()))
            for number, sentence in enumerate(s for s in sentences if s):
                borders.append(len(ids))
                if not number and ids:
                    ids += break_ids
                starts.append(len(ids))
                ids += encode(tokenizer, f" {sentence}" if number else sentence)
        return cls(tuple(ids), tuple(borders), tuple(starts))

    def run(self, length: int, choice: float) -> tuple[list[int], list[int]]:
        """Return ``length`` consecutive tokens from a sentence's start, and their borders.

        Args:
            length: how many tokens; the text must be longer.
            choice: from 0 up to 1, which of the possible starts.

        Raises:
            ValueError: the text is too short.
        """
        possible = bisect.bisect_right(self.starts, len(self.ids) - length)
        if length < 0 or possible == 0:
            raise ValueError(f"prose of {len(self.ids)} tokens is too short for {length}")
        first = int(choice * possible)
        start = self.starts[first]
        end = bisect.bisect_left(self.borders, start + length)
        later = [border - start for border in self.borders[first + 1 : end]]
        return list(self.ids[start : start + length]), [0, *later]


def depths(count: int) -> list[float]:
    """Return ``count`` depths from 0 to 1, evenly spread; one is in the middle."""
    return [0.5] if count == 1 else [number / (count - 1) for number in range(count)]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text (none or one, mostly)."""
    with_marks: Sequence[int] = tokenizer("a")["input_ids"]
    bare = encode(tokenizer, "a")
    for start in range(len(with_marks) - len(bare) + 1):
        if list(with_marks[start : start + len(bare)]) == bare:
            return list(with_marks[:start])
    raise ValueError("the tokenizer's special tokens change the tokens of the text between them")
