"""Documents are values with stable ids."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from selfextend_rag.documents import Document, DocumentError, Location, Remark
from tests.documents.files import written


def test_the_id_is_a_hash_of_the_text_alone(tmp_path):
    expected = hashlib.sha256(b"one\ntwo\n").hexdigest()[:16]
    assert Document.from_text("one\r\ntwo\r\n", title="A").id == expected
    assert Document.from_text("one\ntwo\n", source="x", metadata={"k": 1}).id == expected
    assert Document.from_file(written(tmp_path, "a.txt", "one\ntwo\n")).id == expected
    assert Document.from_text("one\ntwo").id != expected
    assert Document.from_text("one\ntwo\n", id="mine").id == "mine"


def test_a_document_is_a_value_that_no_one_can_change():
    remarks = {"page": 1}
    document = Document.from_text("text", title="t", metadata=remarks)
    remarks["page"] = 2
    assert document.metadata == {"page": 1}
    with pytest.raises(AttributeError):
        document.text = "other"
    assert {document, Document.from_text("text", title="t")} == {document}
    assert pickle.loads(pickle.dumps(document)) == copy.deepcopy(document) == document


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_blank_text_is_refused(text):
    with pytest.raises(DocumentError, match="Notes has no text"):
        Document.from_text(text, title="Notes")


def test_half_a_surrogate_pair_is_refused_where_it_stands():
    with pytest.raises(DocumentError, match=r"lone surrogate .* at character 3"):
        Document.from_text("abc\ud83d")


def test_a_title_with_a_lone_surrogate_is_refused_and_one_of_a_file_name_made_text(tmp_path):
    """Two such documents failed in the tokenizer, which takes no such heading."""
    with pytest.raises(DocumentError, match=r"the title of .* holds the lone surrogate"):
        Document.from_text("x", title="\udce9")
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    try:
        Path(os.fsdecode(name)).write_text("The sea.")
    except OSError:
        pytest.skip("the file system takes no such name")
    document = Document.from_file(os.fsdecode(name))
    assert document.title == "caf\ufffd"
    assert os.fsencode(document.source) == name


PAGES = Document.from_text(
    "ab\n\ncd\nef\n\ngh",
    locations=[Location(0, "page 1"), Location(4, "page 2"), Location(11, "sheet Costs", 40)],
)


@pytest.mark.parametrize(
    ("start", "end", "where"),
    [
        (0, 2, "page 1"),
        (3, 5, "pages 1-2"),
        (4, 9, "page 2"),
        (9, 12, "page 2 to sheet Costs, row 40"),
        (11, 13, "sheet Costs, row 40"),
        (12, 12, "sheet Costs, row 40"),
    ],
)
def test_a_passage_is_located_by_the_page_or_row_of_its_first_and_last_character(start, end, where):
    assert PAGES.location(start, end) == where


def test_each_line_of_a_table_is_the_next_row():
    table = Document.from_text("a | b\n1 | 2\n3 | 4", locations=[Location(0, "sheet 1", 7)])
    assert table.location(6, 11) == "sheet 1, row 8"
    assert table.location(0, 13) == "sheet 1, rows 7-9"
    assert Document.from_text("plain").location(0, 5) is None


def test_a_document_survives_being_json():
    remark = Remark("pages without text", "page 2 has none", "loss", 1, "page 2")
    document = replace(PAGES, remarks=(remark,))
    again = Document.from_dict(json.loads(json.dumps(document.to_dict())))
    assert (again, again.remarks, again.locations) == (document, (remark,), PAGES.locations)


def test_a_strict_reader_refuses_what_is_remarked(tmp_path):
    guessed = written(tmp_path, "a.txt", "déjà vu, à la carte, où êtes-vous ?".encode("latin-1"))
    assert Document.from_file(guessed, strict=True).remarks[0].severity == "warning"
    with pytest.raises(DocumentError, match="which is a guess"):
        Document.from_file(guessed, strict="warning")
    with pytest.raises(ValueError, match="note, warning, loss"):
        Document.from_file(guessed, strict="all")


@pytest.mark.parametrize(
    ("severity", "strict", "refused"),
    [
        ("loss", True, True),
        ("loss", "loss", True),
        ("loss", "warning", True),
        ("warning", True, False),
        ("warning", "warning", True),
        ("note", "warning", False),
        ("note", "note", True),
        ("loss", False, False),
    ],
)
def test_documents_are_whole_down_to_a_severity(severity, strict, refused):
    remark = Remark("pages without text", "page 2 has no text", severity)
    document = Document.from_text("text", title="scan.pdf", remarks=[remark])
    if not refused:
        return document.check_whole(strict)
    with pytest.raises(DocumentError, match=r"scan\.pdf is not read whole: page 2 has no text"):
        document.check_whole(strict)


def test_shortcomings_are_the_remarks_that_matter():
    remarks = [Remark("a", "A", severity) for severity in ("note", "warning", "loss")]
    assert Document.from_text("x", remarks=remarks).shortcomings == tuple(remarks[1:])


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"text": None}, TypeError),
        ({"id": 3}, TypeError),
        ({"more": 1}, TypeError),
        ({"remarks": None}, TypeError),
        ({"remarks": ["page 2 has none"]}, TypeError),
        ({"remarks": [{"kind": "a", "message": "b", "severity": "bad"}]}, ValueError),
        ({"remarks": [{"kind": "a", "message": 7}]}, TypeError),
        ({"remarks": [{"kind": "a", "message": "b", "count": "many"}]}, TypeError),
        ({"locations": [{"start": "0", "name": "page 1"}]}, TypeError),
        ({"locations": [{"start": 0, "name": "page 1", "row": "x"}]}, TypeError),
        ({"locations": [{"start": 0}]}, TypeError),
        ({"locations": [{"start": 0, "name": None}]}, ValueError),
        ({"locations": [{"start": -1, "name": "page 1"}]}, ValueError),
        ({"locations": [{"start": 99, "name": "page 1"}]}, ValueError),
        ({"locations": [{"start": 3, "name": "b"}, {"start": 0, "name": "a"}]}, ValueError),
    ],
)
def test_values_of_no_document_are_refused(changed, error):
    values = {**Document.from_text("some text").to_dict(), **changed}
    with pytest.raises(error):
        Document.from_dict(values)
