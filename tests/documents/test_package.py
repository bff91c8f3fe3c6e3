"""Office files can't make a program open, fetch or unpack what a document is not."""

from __future__ import annotations

import io
import random
import zipfile

import pytest
from openpyxl import Workbook

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written
from tests.documents.office_files import (
    CHART,
    EQUATION,
    docx,
    edited,
    opendocument,
    paragraph,
    pptx,
    relations,
    shape,
    slide,
    zipped,
)


def xlsx():
    workbook, out = Workbook(), io.BytesIO()
    workbook.active.append(["Text", 12.5, "=A1"])
    workbook.save(out)
    return out.getvalue()


FILES = {
    "docx": (docx(paragraph("Text") + paragraph(EQUATION)), "word/document.xml"),
    "pptx": (pptx(slide(shape("Text")), slide(shape("More", "title"))), "ppt/slides/slide1.xml"),
    "xlsx": (xlsx(), "xl/worksheets/sheet1.xml"),
    "odt": (opendocument("<office:text><text:p>Text</text:p></office:text>"), "content.xml"),
}
BOMB = "<!DOCTYPE a [<!ENTITY b 'bbb'><!ENTITY c '&b;&b;'>]>"
REMOTE = "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]>"
kinds = pytest.mark.parametrize("kind", FILES)


def ended(kind, filler):
    """A file of this kind with more at the end of its main member."""
    data, member = FILES[kind]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read(member).decode()
    end = text[text.rindex("</") :]
    return edited(data, member, end, filler + end)


def refusal(tmp_path, kind, data):
    with pytest.raises(DocumentError) as caught:
        Document.from_file(written(tmp_path, f"a.{kind}", data))
    return str(caught.value)


@kinds
@pytest.mark.parametrize("declared", [BOMB, REMOTE, "<!DOCTYPE a SYSTEM 'http://example.org/a'>"])
def test_entities_and_document_types_are_refused(tmp_path, kind, declared):
    data, member = FILES[kind]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text = archive.read(member).decode()
    data = edited(data, member, text, declared + text.replace("Text", "&b;Text", 1))
    message = refusal(tmp_path, kind, data)
    assert "document type" in message or "Entity" in message


@kinds
def test_deep_nesting_is_refused(tmp_path, kind):
    data = ended(kind, "<x>" * 3000 + "</x>" * 3000)
    assert "Excessive depth" in refusal(tmp_path, kind, data)


@kinds
@pytest.mark.parametrize("filler", [" ", "<x/>"])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path, kind, filler):
    data = ended(kind, filler * (12_000_000 // len(filler)))
    assert len(data) < 1_000_000
    assert "unpacks to more than" in refusal(tmp_path, kind, data)


@pytest.mark.parametrize("target", ["file://{}", "{}", "../../../../../..{}"])
@pytest.mark.parametrize("mode", ["External", "Internal"])
def test_nothing_outside_the_file_is_opened(tmp_path, target, mode):
    secret = written(tmp_path, "secret.xml", CHART)
    graphic = '<w:r><w:drawing><c:chart r:id="x"/></w:drawing></w:r>'
    rels = relations(x="chart " + target.format(secret) + f'" TargetMode="{mode}')
    data = docx(paragraph(graphic) + paragraph("Text"))
    data = edited(data, "word/_rels/document.xml.rels", "</Relationships>", rels.split(">", 1)[1])
    document = Document.from_file(written(tmp_path, "a.docx", data))
    assert document.text == "Text"
    assert [remark.kind for remark in document.remarks] == ["embedded objects"]


@kinds
def test_an_encrypted_archive_is_refused_by_its_password(tmp_path, kind):
    data = bytearray(FILES[kind][0])
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(signature, at + 4)
    assert "password" in refusal(tmp_path, kind, bytes(data))


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ("EncryptedPackage", "encrypted with a password"),
        ("WordDocument", "an old Word file (.doc)"),
        ("Workbook", "an old Excel file (.xls)"),
        ("PowerPoint Document", "an old PowerPoint file (.ppt)"),
        ("Other", "an old Microsoft Office file"),
    ],
)
def test_old_and_encrypted_office_files_are_refused_by_name(tmp_path, stream, said):
    data = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + stream.encode("utf-16-le")
    assert said in refusal(tmp_path, "xlsx", data)


def test_macros_are_remarked(tmp_path):
    data = edited(FILES["docx"][0], "word/document.xml", "Text", "Text", **{"vbaProject.bin": "x"})
    document = Document.from_file(written(tmp_path, "a.docm", data))
    assert [remark.kind for remark in document.remarks] == ["macros"]


@kinds
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    """More of the same: benchmarks/damaged_documents.py."""
    data, member = FILES[kind]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    rng, outcomes = random.Random(1), set()
    for _ in range(150):
        damaged = bytearray(parts[member])
        at, to = sorted(rng.choices(range(len(damaged)), k=2))
        change = rng.choice((b"", b"<", b"9", b"<w:r>", damaged[to : to + 40]))
        damaged[at : at + rng.choice((0, 1, 20))] = change
        path = written(tmp_path, f"a.{kind}", zipped({**parts, member: bytes(damaged)}))
        try:
            outcomes.add(bool(Document.from_file(path).text))
        except DocumentError:
            outcomes.add(False)
    assert outcomes == {True, False}
