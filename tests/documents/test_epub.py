"""Books are read chapter by chapter, in their order, and each passage knows its chapter."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written

CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
    'version="1.0"><rootfiles><rootfile full-path="OEBPS/book.opf" '
    'media-type="application/oebps-package+xml"/></rootfiles></container>'
)
XHTML = (
    '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html>'
    '<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{}</body></html>'
)
CHAPTERS = {
    "b.xhtml": "<h1>Zwei &#8211; Prüfung</h1><p>The second.</p>",
    "text/a b.xhtml": "<a id='x'/><h1>Eins</h1><p>The first.</p><img src='x.png'/>",
    "c.xhtml": "<p>The third.</p>",
}


def book(chapters: dict[str, str], order: list[str] | None = None, **others: str | bytes) -> bytes:
    """An EPUB 3 with these chapters as pages, in that order of reading."""
    names = list(chapters)
    items = "".join(
        f'<item id="i{n}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    refs = "".join(f'<itemref idref="i{names.index(name)}"/>' for name in order or names)
    opf = (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The\n Pump</dc:title>'
        "<dc:creator>Ann</dc:creator><dc:creator>Bob</dc:creator></metadata><manifest>"
        '<item id="n" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        f"{items}</manifest><spine>{refs}</spine></package>"
    )
    members: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": opf,
        "OEBPS/nav.xhtml": XHTML.format("<nav>Contents</nav>"),
        **{f"OEBPS/{name}": XHTML.format(body) for name, body in chapters.items() if body},
        **{name.replace("__", "/"): data for name, data in others.items()},
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def read(folder: Path, data: bytes) -> Document:
    return Document.from_file(written(folder, "a.epub", data))


def kinds(document: Document) -> dict[str, tuple[str, int]]:
    return {remark.kind: (remark.severity, remark.count) for remark in document.remarks}


def test_chapters_come_in_the_order_of_reading_and_passages_name_them(tmp_path):
    order = ["text/a b.xhtml", "b.xhtml", "c.xhtml"]
    document = read(tmp_path, book(CHAPTERS, order))
    assert document.text == (
        "# Eins\n\nThe first.\n\n# Zwei \u2013 Prüfung\n\nThe second.\n\nThe third."
    )
    assert document.title == "The Pump"
    assert document.metadata["format"] == "epub"
    assert document.metadata["creators"] == ["Ann", "Bob"]
    for words, chapter in (("first", 1), ("Prüfung", 2), ("third", 3)):
        at = document.text.index(words)
        assert document.location(at, at + len(words)) == f"chapter {chapter}"
    assert document.location(0, len(document.text)) == "chapters 1-3"
    assert not [remark for remark in document.remarks if remark.severity != "note"]


def test_what_a_book_has_besides_is_remarked(tmp_path):
    chapters = {"cover.xhtml": "<img src='x'/>", **CHAPTERS, "lost.xhtml": ""}
    order = ["cover.xhtml", "b.xhtml", "lost.xhtml", "c.xhtml"]
    document = read(tmp_path, book(chapters, order))
    found = kinds(document)
    assert found["missing chapters"] == ("loss", 1)
    assert found["other pages"] == ("warning", 1)
    document = read(tmp_path, book(CHAPTERS, **{"OEBPS__unlisted.HTML": "<p>Not listed"}))
    assert kinds(document)["other pages"] == ("warning", 1)
    assert found["chapters without text"] == ("warning", 1)
    at = document.text.index("third")
    assert document.location(at, at + 5) == "chapter 3"


ENCRYPTED = (
    '<encryption><EncryptedData><EncryptionMethod Algorithm="{}"/></EncryptedData></encryption>'
)


def test_a_protected_book_is_refused_and_one_with_protected_fonts_is_read(tmp_path):
    member = "META-INF__encryption.xml"
    aes = ENCRYPTED.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")
    with pytest.raises(DocumentError, match="is protected against copying"):
        read(tmp_path, book(CHAPTERS, **{member: aes}))
    fonts = ENCRYPTED.format("http://www.idpf.org/2008/embedding")
    assert "The third." in read(tmp_path, book(CHAPTERS, **{member: fonts})).text


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (book({"a.xhtml": "<img src='x'/>"}), "has no text in its chapters"),
        (book(CHAPTERS, **{"OEBPS__book.opf": "<package>"}), "is a damaged or unusual"),
        (book(CHAPTERS, **{"META-INF__container.xml": "<container/>"}), "is a damaged or unusual"),
        (book({"a.xhtml": "<p>x", "b.xhtml": "<b>" * 200_000 + "x"}), "nests more than"),
        (book({"a.xhtml": "<p>x</p>" + " " * 10_000_000}), "unpacks to more than"),
        (
            book(
                CHAPTERS, **{"META-INF__container.xml": '<!DOCTYPE x [<!ENTITY e "x">]><x>&e;</x>'}
            ),
            "declares a document type",
        ),
    ],
)
def test_what_is_no_whole_book_is_refused(tmp_path, data, found):
    with pytest.raises(DocumentError, match=found):
        read(tmp_path, data)


def test_a_damaged_book_is_read_or_refused_and_never_fails(tmp_path):
    data, rng = book(CHAPTERS), random.Random(7)
    read_or_refused = [0, 0]
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read_or_refused[0] += bool(read(tmp_path, bytes(damaged)).text)
        except DocumentError:
            read_or_refused[1] += 1
    assert min(read_or_refused) > 10
