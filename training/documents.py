"""Documents for training rows: facts at the borders of prose's sentences."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.facts import Fact, FactMaker


@dataclass(frozen=True)
class Prose:
    """Token ids of the training prose, and where its sentences and paragraphs start."""

    ids: np.ndarray
    sentences: np.ndarray
    paragraphs: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> "Prose":
        """Return what ``training.prepare`` wrote."""
        return cls(
            *(np.load(folder / f"{name}.npy") for name in ("prose", "sentences", "paragraphs"))
        )


class DocumentMaker:
    """Draws prose, and documents of exactly the asked length.

    Args:
        encode: gives the ids of a text, without a start token.
        prose: where running text is taken from.
        facts: draws titles' words and stray numbers.
        rng: the source of all choices.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        prose: Prose,
        facts: FactMaker,
        rng: random.Random,
    ) -> None:
        self.encode = encode
        self.prose = prose
        self.facts = facts
        self.rng = rng
        self.paragraph_starts = set(prose.paragraphs.tolist())
        self.newlines = frozenset(encode("\n"))

    def document(self, facts: list[Fact], length: int) -> list[int]:
        """Return a document of exactly ``length`` tokens with the facts at random depths."""
        rng = self.rng
        pieces = [fact.statement for fact in facts]
        if rng.random() < 0.4:
            pieces += [self.facts.stray_number() for _ in range(rng.randint(1, 3))]
        if length > 200 and rng.random() < 0.3:
            pieces.append(f"\n\n{self.title()}\n\n")
        rng.shuffle(pieces)
        head = self.encode(f"{self.title()}\n\n") if rng.random() < 0.25 else []
        spread = sorted(rng.random() for _ in pieces)
        while True:
            encoded = [self.encode(f" {piece}" if piece[0] != "\n" else piece) for piece in pieces]
            room = length - len(head) - sum(len(piece) + 3 for piece in encoded)
            if room >= 0:
                break
            if head:
                head = []
                continue
            extras = [p for p in pieces if p not in {fact.statement for fact in facts}]
            if not extras:
                break
            place = pieces.index(extras[0])
            del pieces[place], spread[place]
        return self._interleave(pieces, spread, head, length)

    def _interleave(
        self, pieces: list[str], spread: list[float], head: list[int], length: int
    ) -> list[int]:
        """Return prose with facts and other sentences put at borders of its own."""
        rng = self.rng
        fixed = sum(len(self.encode(f" {piece}")) + 2 for piece in pieces) + len(head)
        prose, borders, breaks = self.run(max(0, length - fixed + 64))
        limit = max(0, length - fixed)
        borders = [b for b in borders if b <= limit] or [0]
        ids = list(head)
        done = 0
        placed: dict[int, str] = {}
        for piece, depth in zip(pieces, spread, strict=True):
            border = min(borders, key=lambda b: abs(b - depth * limit))
            before = placed.get(border, "")
            joint = "" if not before or before[-1] == "\n" or piece[0] == "\n" else " "
            if joint and rng.random() < 0.3:
                joint = "\n\n"
            placed[border] = before + joint + piece
        for border, piece in sorted(placed.items()):
            ids += prose[done:border]
            done = max(done, border)
            if piece[0] == "\n":
                ids += self.encode(piece)
            elif border in breaks or not ids or rng.random() < 0.08:
                at_start = not ids or ids[-1] in self.newlines
                ids += self.encode(piece if at_start else f"\n\n{piece}")
                if border in breaks:
                    ids += self.encode("\n\n")
            else:
                ids += self.encode(f" {piece}")
        missing = length - len(ids)
        if missing < 0:  # paragraph marks took more than was put by
            return ids[-missing:] if not pieces else ids[:length]
        rest = prose[done : done + missing]
        if len(rest) < missing:
            rest += self.run(missing - len(rest))[0]
        return ids + rest

    def title(self) -> str:
        words = self.rng.choices(self.facts.words["nouns"], k=self.rng.randint(1, 3))
        title = " ".join(words).title() if self.rng.random() < 0.6 else self.facts.name()
        return self.rng.choice(("# {}", "# {}", "## {}", "Document: {}", "{}")).format(title)

    def run(self, length: int) -> tuple[list[int], list[int], set[int]]:
        """Return running prose, the places of its sentence borders, and of its paragraphs."""
        if length <= 0:
            return [], [0], {0}
        prose = self.prose
        first = self.rng.randrange(len(prose.sentences) - length - 1)
        if self.rng.random() < 0.85:  # from the start of a paragraph
            while int(prose.sentences[first]) not in self.paragraph_starts:
                first -= 1
        start = int(prose.sentences[first])
        ids = prose.ids[start : start + length].tolist()
        borders: list[int] = []
        breaks: set[int] = set()
        for place in prose.sentences[first : first + length]:
            offset = int(place) - start
            if offset > length:
                break
            borders.append(offset)
            if int(place) in self.paragraph_starts:
                breaks.add(offset)
        return ids, borders, breaks
