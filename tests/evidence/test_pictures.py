"""Evidence in documents with pictures: the picture that was looked at, or the passage."""

from __future__ import annotations

import numpy as np
import pytest

from selfextend_rag.documents import Document, Picture
from selfextend_rag.evidence import TokenRanges, attention_profile, find_evidence

TEXT = "One two. Three."
PICTURES = (Picture(b"a", 3, 4, 8, "page 2"), Picture(b"b", 3, 4, 15))
DOCUMENTS = [
    Document.from_text(TEXT, title="mixed", pictures=PICTURES),
    Document.from_text("", title="scan", pictures=[Picture(b"c", 5, 5, 0, "page 1")]),
]
# (document, start, end, picture) of each token: two of the frame, then text and pictures in order
ROWS = [
    *((-1, 0, 0, -1), (-1, 0, 0, -1)),
    *((0, 0, 4, -1), (0, 4, 8, -1)),
    *((0, 8, 8, 0),) * 3,
    (0, 8, 15, -1),
    *((0, 15, 15, 1),) * 3,
    (-1, 0, 0, -1),
    *((1, 0, 0, 0),) * 4,
]
RANGES = TokenRanges(*(np.array(column, dtype=np.int64) for column in zip(*ROWS, strict=True)))


def mass(**weights: float) -> np.ndarray:
    """The weight of each token, ``t5=0.5`` of the sixth."""
    found = np.zeros(len(ROWS))
    for name, weight in weights.items():
        found[int(name[1:])] = weight
    return found


def test_a_picture_is_named_with_the_share_of_all_its_tokens():
    first, second = find_evidence(mass(t4=0.2, t6=0.3, t13=0.4, t3=0.1), RANGES, DOCUMENTS)[:2]
    assert (first.title, first.picture, first.location) == ("mixed", 0, "page 2")
    assert (first.text, first.start, first.end) == ("", 8, 8)
    assert first.score == pytest.approx(0.5)
    assert (second.title, second.picture, second.score) == ("scan", 0, pytest.approx(0.4))


def test_a_passage_has_the_attention_of_its_text_alone():
    """The tokens of a picture within it are at one of its characters, and are not its own."""
    found = find_evidence(mass(t3=0.3, t7=0.3, t5=0.4), RANGES, DOCUMENTS, window=12)
    (text,) = [x for x in found if x.picture is None]
    assert text.text == TEXT
    assert text.score == pytest.approx(0.6)
    (picture,) = [x for x in found if x.picture is not None]
    assert picture.score == pytest.approx(0.4)


def test_a_picture_without_a_name_is_called_by_its_number_and_json_says_which():
    (found,) = find_evidence(mass(t9=1.0), RANGES, DOCUMENTS)
    assert found.location == "picture 2"
    assert found.to_dict()["picture"] == 1
    (found,) = find_evidence(mass(t2=1.0), RANGES, DOCUMENTS)
    assert "picture" not in found.to_dict()


def test_the_profile_of_a_document_with_pictures_is_of_its_tokens():
    one, other = attention_profile(mass(t4=0.25, t12=0.75), RANGES, DOCUMENTS, slices=9)
    assert sum(one) == pytest.approx(0.25)
    assert one[2] == pytest.approx(0.25)  # the third of its nine tokens
    assert other[0] + other[1] + other[2] == pytest.approx(0.75)


def test_ranges_of_another_day_keep_their_pictures():
    tokens = list(range(len(ROWS)))
    found = RANGES.within_other(tokens, [97, 98, 99, *tokens[2:]])
    assert found is not None
    assert found.picture is not None
    assert found.picture.tolist() == [-1, *RANGES.picture.tolist()]
