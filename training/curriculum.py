"""The curriculum: the rows of each stage, and how much each of their tokens weighs."""

from dataclasses import dataclass

from training.guide import Span

PROSE_WEIGHT = 0.1
CHOICE_WEIGHT = 2.0  # of the first token that tells one value from another


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum.

    Attributes:
        length: tokens of a row.
        facts: the most facts in a document of prose.
        rows: rows of a batch.
        repeats: share of rows that are repeats.
        passkeys: share of the documents whose one fact is a pass key.
        associations: share of rows that pair random keys with random values, twice.
        gap: the most tokens between key and value in them.
        restated: share of rows that state facts and then state or ask them again.
        dense: share of the documents that hold facts and hardly any prose.
        plain: whether facts keep to the plainest wordings.
        unstated: share of the questions that the document does not answer.
        objects: share of the answers that are JSON objects.
        quoted: share of rows that list words, and then the same words in quotation marks.
        inside: share of rows whose questions bring their own text.
        branched: tokens of a row whose questions do not see each other; each has the positions
            after the document, so that document and question are at most ``length`` tokens.
    """

    length: int
    facts: int
    rows: int
    repeats: float
    dense: float
    passkeys: float = 0.0
    associations: float = 0.0
    gap: int = 4
    restated: float = 0.0
    plain: bool = False
    unstated: float = 0.0
    objects: float = 0.0
    quoted: float = 0.0
    inside: float = 0.0
    branched: int = 0


Row = tuple[list[int], list[int], list[float], list[Span], list[tuple[int, int, int]]]
"""Input ids, targets, weights of the loss, where in the row each target is stated, and for tokens
of statements' ends their place, and the first place and the size of the value to know there."""

STAGES = (
    Stage(
        length=96, facts=3, rows=26, repeats=0.25, associations=0.1, gap=2, restated=0.4, dense=0.6
    ),
    Stage(
        length=160,
        branched=384,
        facts=4,
        rows=16,
        repeats=0.06,
        associations=0.06,
        restated=0.15,
        dense=0.9,
        unstated=0.32,
        objects=0.4,
        quoted=0.2,
        inside=0.12,
    ),
    Stage(
        length=256,
        branched=512,
        facts=6,
        rows=10,
        repeats=0.05,
        associations=0.05,
        restated=0.1,
        dense=0.75,
        passkeys=0.05,
        unstated=0.32,
        objects=0.4,
        quoted=0.2,
        inside=0.12,
    ),
    Stage(
        length=512,
        branched=1024,
        facts=7,
        rows=5,
        repeats=0.05,
        associations=0.03,
        restated=0.03,
        dense=0.25,
        passkeys=0.1,
        unstated=0.32,
        objects=0.4,
        quoted=0.2,
        inside=0.12,
    ),
)
