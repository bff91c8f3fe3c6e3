"""The text of every page of a PDF, or a refusal."""

from __future__ import annotations

import contextlib
import logging
import random

import pytest

from selfextend_rag.documents import Document, DocumentError, Location
from tests.documents.files import encrypted, pdf_bytes, written


def test_the_text_of_every_page_is_taken_with_its_place(tmp_path):
    data = pdf_bytes("Anna approves travel.", "Bert approves leave.", title="The  Handbook")
    document = Document.from_file(written(tmp_path, "handbook.pdf", data))
    assert document.text == "Anna approves travel.\n\nBert approves leave."
    assert document.title == "The Handbook"
    assert document.metadata == {"format": "pdf", "pages": 2, "pages_without_text": []}
    assert document.locations == (Location(0, "page 1"), Location(23, "page 2"))
    assert document.remarks == ()


def test_pages_without_text_are_counted_and_said_aloud(tmp_path, caplog):
    data = pdf_bytes("", "Anna approves travel.", "", "Bert approves leave.")
    with caplog.at_level(logging.WARNING, logger="selfextend_rag"):
        document = Document.from_file(written(tmp_path, "handbook.pdf", data))
    assert document.title == "handbook"
    assert document.metadata["pages"] == 4
    assert document.metadata["pages_without_text"] == [1, 3]
    starts = {location.name: location.start for location in document.locations}
    assert list(starts) == ["page 2", "page 4"]
    assert document.text[starts["page 2"] :].startswith("Anna")
    assert document.text[starts["page 4"] :].startswith("Bert")
    (remark,) = document.remarks
    assert (remark.kind, remark.severity, remark.count) == ("pages without text", "loss", 2)
    assert "2 of 4 pages have no text" in caplog.text


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_that_opens_without_a_password_is_read(tmp_path, algorithm):
    data = encrypted(pdf_bytes("Anna approves travel."), "", algorithm)
    assert Document.from_file(written(tmp_path, "a.pdf", data)).text == "Anna approves travel."


def test_a_pdf_is_recognised_under_any_name(tmp_path, caplog):
    document = Document.from_file(written(tmp_path, "a.txt", pdf_bytes("Anna approves travel.")))
    assert document.metadata["format"] == "pdf"
    with caplog.at_level(logging.WARNING):
        Document.from_file(written(tmp_path, "a.md", pdf_bytes("Anna approves travel.")))
    assert "named like markdown but was read as the pdf it is" in caplog.text


def test_a_pdf_cut_anywhere_is_read_whole_or_refused(tmp_path):
    data = pdf_bytes("Anna approves travel.", "Bert approves leave.")
    for end in range(10, len(data), len(data) // 25):
        path = written(tmp_path, "cut.pdf", data[:end])
        with contextlib.suppress(DocumentError):
            text = Document.from_file(path).text
            assert text == "Anna approves travel.\n\nBert approves leave."


def test_a_pdf_that_states_more_pages_than_it_has_is_refused(tmp_path):
    """A damaged page tree once lost its first page in silence."""
    data = pdf_bytes("Anna approves travel.", "Bert approves leave.")
    assert data.count(b"/Count 2") == 1
    path = written(tmp_path, "a.pdf", data.replace(b"/Count 2", b"/Count 3"))
    with pytest.raises(DocumentError, match="states 3 pages, and 2 can be found"):
        Document.from_file(path)


def test_a_pdf_page_whose_content_is_damaged_is_refused_or_a_loss(tmp_path):
    """Its text was lost or wrong, and the page said to be a picture, or nothing was said."""
    lines = " ".join(f"The party of part {i} owes {i * i} dollars." for i in range(40))
    data, rng = pdf_bytes(lines), random.Random(1)
    start = data.index(b"stream\n") + len(b"stream\n")
    end = data.index(b"\nendstream")
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        path = written(tmp_path, "a.pdf", bytes(damaged))
        with pytest.raises(DocumentError, match=r"is a damaged or unusual PDF|is not read whole"):
            Document.from_file(path, strict="loss")


def test_departures_from_the_pdf_format_are_one_warning(tmp_path, caplog):
    data = pdf_bytes("Anna approves travel.")
    path = written(tmp_path, "a.pdf", b"\n" + data)  # every offset is off by one
    document = Document.from_file(path)
    assert document.text == "Anna approves travel."
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("selfextend_rag")]
    (said,) = ours
    assert "1 departure from the PDF format" in said
    assert "compare what is read with what a viewer shows" in said


def test_a_damaged_pdf_is_read_or_refused_and_lost_text_is_said_aloud(tmp_path, caplog):
    pages = ["Anna approves travel.", "Bert approves leave.", "Cora approves nothing."]
    data, rng, refused = pdf_bytes(*pages), random.Random(1), 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 5, 30))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        caplog.clear()
        try:
            document = Document.from_file(written(tmp_path, "a.pdf", bytes(damaged)))
        except DocumentError:
            refused += 1
            continue
        lost = len(document.text) < 0.9 * len("\n\n".join(pages))
        assert not lost or caplog.records
    assert 0 < refused < 150
