"""Documents to try the app with: copies of those in examples/documents.

The handbook and the lighthouse's report were written for this project; the King James Version is in
the public domain. examples/documents/README.md says where it was taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Sample:
    """A document to try.

    Args:
        name: of its file.
        label: what people choose it by.
        questions: whose answers the text has, and the bundled model finds.
    """

    name: str
    label: str
    questions: tuple[str, ...]


SAMPLES = (
    Sample(
        "handbook.pdf",
        "Handbook of an observatory",
        ("What is the access code of the workshop?", "What is the height of the dome?"),
    ),
    Sample(
        "black-head.md",
        "Report of a lighthouse",
        ("What is the height of the tower?", "What is the number of the boat?"),
    ),
    Sample(
        "genesis.txt",
        "Genesis 1 to 3",
        ("What is the fourth river?", "What is the name of the second river?"),
    ),
)
NAMES = tuple(sample.name for sample in SAMPLES)


def data_of(name: str) -> bytes:
    """Return the bytes of a sample.

    Raises:
        KeyError: there is none of this name.
    """
    if name not in NAMES:
        raise KeyError(name)
    return (_FOLDER / name).read_bytes()
