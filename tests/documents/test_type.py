"""Documents are values with stable ids."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
from pathlib import Path

import pytest

from selfextend_rag.documents import Document, DocumentError
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
