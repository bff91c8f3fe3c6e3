"""Text recognition: which pages, in what order their lines come, and what is said of it."""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from importlib.util import find_spec

import pikepdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from selfextend_rag.documents import Document, DocumentError, pdf, read_documents
from selfextend_rag.documents.scans import PIXELS, Line, in_order
from tests.documents.files import pdf_bytes
from tests.documents.pdf_corpus import HELVETICA, at, by_hand, drawn, saved, shown, words
from tests.documents.scans import fake_recogniser, pictures, scanned, worn

real = pytest.mark.skipif(
    find_spec("rapidocr") is None or find_spec("onnxruntime") is None,
    reason="needs the extra ocr: rapidocr and onnxruntime",
)
GOOD = [(100, 100, "Cora approves", 0.99), (100, 140, "nothing.", 0.95)]


def line(text: str, left: float, top: float, length: float, height: float = 10) -> Line:
    return Line(text, 1.0, left + length / 2, top + height / 2, 0.0, length, height)


def column(name: str, left: float, length: float, count: int = 6, top: float = 50) -> list[Line]:
    return [line(f"{name}{n}", left, top + 14 * n, length) for n in range(count)]


COLUMNS = [
    line("title", 40, 10, 500),
    *column("a", 40, 240),
    *column("b", 300, 240),
    line("between", 60, 140, 470),
    *column("c", 40, 240, top=160),
    *column("d", 300, 240, top=160),
    line("7", 290, 260, 8),
]
IN_ORDER = ["title", *(f"{x}{n}" for x in "ab" for n in range(6)), "between"]
IN_ORDER += [*(f"{x}{n}" for x in "cd" for n in range(6)), "7"]


@settings(max_examples=40)
@given(st.permutations(COLUMNS), st.integers(0, 3), st.floats(-4, 4))
def test_columns_are_read_one_after_the_other_however_the_page_lies(lines, quarter, skew):
    turn = math.radians(90 * quarter + skew)
    cos, sin = math.cos(turn), math.sin(turn)
    lying = [
        Line(x.text, 1.0, cos * x.x - sin * x.y, sin * x.x + cos * x.y, turn, x.length, x.height)
        for x in lines
    ]
    assert in_order(lying) == IN_ORDER


def test_three_columns_are_three():
    lines = [*column("a", 0, 150), *column("b", 170, 150), *column("c", 340, 150)]
    random.Random(0).shuffle(lines)
    assert in_order(lines) == [f"{name}{n}" for name in "abc" for n in range(6)]


def test_a_table_below_columns_stays_a_table():
    rows = [("Item", 0), ("Count", 90), ("Price", 170)]
    table = [line(f"{x}{n}", left, 200 + 14 * n, 30) for n in range(3) for x, left in rows]
    text = in_order([*column("a", 0, 150), *column("b", 170, 150), *table])
    assert text[:12] == [f"{name}{n}" for name in "ab" for n in range(6)]
    assert text[12:] == [f"Item{n} Count{n} Price{n}" for n in range(3)]


def test_tables_and_forms_are_read_row_by_row():
    rows = [("Seal", "12.50", "4"), ("Bolt of steel", "0.70", "11"), ("Pump", "840", "1")] * 2
    table = [
        line(value, left, 14 * n, 6 * len(value))
        for n, row in enumerate(rows)
        for left, value in zip((0, 200, 300), row, strict=True)
    ]
    assert in_order(table) == [" ".join(row) for row in rows]
    labels = ["Name", "Street and number", "City", "Telephone", "E-mail"]
    form = [line(f"{label}:", 0, 14 * n, 6 * len(label)) for n, label in enumerate(labels)]
    form += [line("x" * 40, 130, 14 * n + 2, 240) for n in range(5)]
    assert in_order(form) == [f"{label}: {'x' * 40}" for label in labels]


def test_a_recognised_page_is_in_its_place_and_is_remarked(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, GOOD)
    data = pdf_bytes("Anna approves travel.", "", "Bert approves leave.")
    document = Document.from_bytes(data, "a.pdf", ocr=True)
    assert document.text == (
        "Anna approves travel.\n\nCora approves\nnothing.\n\nBert approves leave."
    )
    start = document.text.index("nothing")
    assert document.location(start, start + 7) == "page 2"
    assert document.metadata["pages_without_text"] == []
    assert document.metadata["recognised"] == [{"page": 2, "confidence": 0.975, "lowest": 0.95}]
    (remark,) = document.remarks
    assert (remark.kind, remark.severity, remark.count, remark.location) == (
        "recognised pages",
        "warning",
        1,
        "page 2",
    )
    assert "confidence 0.97 (0.95 in the least certain line)" in remark.message
    assert Document.from_bytes(data, "a.pdf", ocr=True, strict="loss").text == document.text
    with pytest.raises(DocumentError, match=r"recognised from pictures.*is not read whole|whole"):
        Document.from_bytes(data, "a.pdf", ocr=True, strict="warning")


def test_documents_read_with_and_without_recognition_differ(tmp_path, monkeypatch):
    """Saved readings are tied to the ids and texts of their documents."""
    fake_recogniser(tmp_path, monkeypatch, GOOD)
    for pages, same in ((("Anna approves travel.", ""), False), (("Anna approves travel.",), True)):
        data = pdf_bytes(*pages)
        off, on = (Document.from_bytes(data, "a.pdf", ocr=ocr) for ocr in (False, True))
        assert (off.id == on.id, off == on) == (same, same)
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_bytes("Anna approves travel.", ""))
    (document,) = read_documents(path, ocr=True).documents
    assert document == Document.from_file(path, ocr=True)
    assert "Cora" in document.text
    (remark,) = Document.from_file(path).remarks
    assert "pictures, which ocr=True reads, or blank" in remark.message


def test_what_is_recognised_poorly_or_not_at_all_is_a_loss(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, [*GOOD, (100, 180, "#~", 0.3)])
    document = Document.from_bytes(pdf_bytes(""), "a.pdf", ocr=True)
    assert document.text == "Cora approves\nnothing."
    remarks = {remark.kind: (remark.severity, remark.count) for remark in document.remarks}
    assert remarks == {"recognised pages": ("warning", 1), "unreadable lines": ("loss", 1)}
    fake_recogniser(tmp_path, monkeypatch, [(100, 100, "Gora appruves", 0.7)])
    document = Document.from_bytes(pdf_bytes("Anna.", ""), "a.pdf", ocr=True)
    (remark,) = document.remarks
    assert (remark.kind, remark.severity) == ("poorly recognised pages", "loss")
    with pytest.raises(DocumentError, match="is not read whole"):
        Document.from_bytes(pdf_bytes("Anna.", ""), "a.pdf", ocr=True, strict=True)


def test_pages_on_which_nothing_is_recognised_stay_remarked(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, [])
    document = Document.from_bytes(pdf_bytes("Anna.", ""), "a.pdf", ocr=True)
    assert document.metadata["pages_without_text"] == [2]
    (remark,) = document.remarks
    assert (remark.kind, remark.severity) == ("pages without text", "loss")
    assert "nothing could be recognised" in remark.message
    with pytest.raises(DocumentError, match=r"no text on any of its 2 page\(s\), and none could"):
        Document.from_bytes(pdf_bytes("", ""), "a.pdf", ocr=True)
    with pytest.raises(DocumentError, match="read it with ocr=True"):
        Document.from_bytes(pdf_bytes("", ""), "a.pdf")


def test_a_blank_page_is_not_given_to_the_recogniser(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, "raise RuntimeError('it was')")
    blank = by_hand(at(72, 700, shown("Anna.")), "")
    assert Document.from_bytes(blank, "a.pdf", ocr=True).metadata["pages_without_text"] == [2]


def test_pages_whose_letters_are_lost_are_recognised(tmp_path, monkeypatch):
    """Their fonts do not say which letters they show; where that is a tenth, pictures do."""
    fake_recogniser(tmp_path, monkeypatch, GOOD)
    names = pikepdf.Array([1, pikepdf.Name("/g21"), pikepdf.Name("/A")])
    font = {**HELVETICA, "/Encoding": pikepdf.Dictionary(Differences=names)}
    for codes, text in (("01" + "02" * 9, "Cora approves\nnothing."), ("01" + "02" * 20, None)):
        data = by_hand(at(72, 700, f"<{codes}> Tj"), font=font)
        plain = Document.from_bytes(data, "a.pdf").text
        assert plain == "\ufffd" + "A" * (len(codes) // 2 - 1)
        assert Document.from_bytes(data, "a.pdf", ocr=True).text == (text or plain)


@pytest.mark.parametrize("size", [(595, 842), (2480, 3508), (100, 100), (20, 14000), (3, 3)])
def test_pictures_have_a_bounded_number_of_pixels(tmp_path, monkeypatch, size):
    """Pages of scans can have any size, such as a point for each pixel of the scanner."""
    said = "said = [(9, 9, ' '.join(map(str, picture.shape)), 1.0)]"
    fake_recogniser(tmp_path, monkeypatch, said)
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=size)
    canvas.rect(0, 0, size[0] / 2, size[1] / 2, fill=1)
    canvas.save()
    document = Document.from_bytes(out.getvalue(), "a.pdf", ocr=True)
    height, width, colours = map(int, document.text.split())
    assert colours == 3
    assert max(height, width) <= 16001
    assert height * width <= 1.02 * PIXELS
    assert height * width > 0.9 * PIXELS or max(height, width) > 15990
    assert height / width == pytest.approx(size[1] / size[0], rel=0.1)


def test_the_recogniser_is_ended_when_it_hangs_and_its_failure_is_a_refusal(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, "raise RuntimeError('bad model')")
    with pytest.raises(DocumentError, match="bad model"):
        Document.from_bytes(pdf_bytes(""), "a.pdf", ocr=True)
    fake_recogniser(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(pdf, "_SCAN_SECONDS", 0.5)
    with pytest.raises(DocumentError, match=r"longer than 20 s, or 0\.5 s to be recognised"):
        Document.from_bytes(pdf_bytes(""), "a.pdf", ocr=True)


@pytest.mark.parametrize("ending", ["import time; time.sleep(600)", "import os; os._exit(9)"])
def test_a_page_that_can_not_be_recognised_is_a_loss_and_the_others_are(
    tmp_path, monkeypatch, ending
):
    """The whole scan was refused for one page that took too long."""
    flag = tmp_path / "second"
    program = f"""
    import pathlib
    flag = pathlib.Path({str(flag)!r})
    seen = len(flag.read_text()) if flag.exists() else 0
    flag.write_text("x" * (seen + 1))
    if seen == 1:
        {ending}
    said = [(9, 9, f"Page {{seen}}.", 1.0)]
    """
    fake_recogniser(tmp_path, monkeypatch, program)
    monkeypatch.setattr(pdf, "_SCAN_SECONDS", 5.0)
    steps = []
    data = pdf_bytes("Anna.", "", "", "", "Bert.")
    document = Document.from_bytes(
        data, "a.pdf", ocr=True, progress=lambda done, total: steps.append((done, total))
    )
    assert document.text == "Anna.\n\nPage 0.\n\nPage 2.\n\nBert."
    assert steps == [(done, 5) for done in range(6)]
    remark = next(r for r in document.remarks if r.kind == "pages not recognised")
    assert (remark.severity, remark.count, remark.location) == ("loss", 1, "page 3")
    assert document.metadata["pages_without_text"] == [3]


def test_a_scan_of_which_no_page_can_be_recognised_is_given_up(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, f"open({str(tmp_path / 'n')!r}, 'a').write('x'); 1 / 0")
    with pytest.raises(DocumentError, match="division by zero"):
        Document.from_bytes(pdf_bytes("Anna.", *[""] * 8), "a.pdf", ocr=True)
    assert (tmp_path / "n").read_text() == "x" * 6


def test_without_the_extra_only_files_that_need_it_are_refused(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, [])
    (tmp_path / "modules" / "onnxruntime.py").write_text("raise ModuleNotFoundError('not here')")
    document = Document.from_bytes(pdf_bytes("Anna."), "a.pdf", ocr=True)
    assert (document.text, document.remarks) == ("Anna.", ())
    with pytest.raises(DocumentError, match=r'\(not here\); pip install "selfextend-rag\[ocr\]"'):
        Document.from_bytes(pdf_bytes("Anna.", ""), "a.pdf", ocr=True)


def recalled(known: str, text: str) -> float:
    """The part of the words that were found, each as often as it is there."""
    expected = Counter(known.split())
    return (expected & Counter(text.split())).total() / expected.total()


def page_of(text: str, font: str = "Helvetica", size: float = 11, width: int = 12) -> bytes:
    """A page of this text, in lines of so many words."""
    given = text.split()

    def draw(canvas):
        canvas.setFont(font, size)
        for n in range(0, len(given), width):
            canvas.drawString(60, 760 - 1.4 * size * n / width, " ".join(given[n : n + width]))

    return drawn(draw)


@real
def test_scans_in_any_position_are_read():
    """Askew, on the side, and upside down with the turn of the page that mends it."""
    texts = [words(36, start) for start in range(3)]
    fonts = (("Times-Roman", 11), ("Helvetica", 9), ("Courier", 10))
    first, second, third = (
        pictures(page_of(text, *font))[0] for text, font in zip(texts, fonts, strict=True)
    )
    pages = [
        worn(first, angle=2, blur=0.7, noise=12),
        second.transpose(Image.Transpose.ROTATE_90),
        third.transpose(Image.Transpose.ROTATE_180),
    ]
    with pikepdf.open(io.BytesIO(scanned(*pages))) as file:
        file.pages[2].Rotate = 180
        document = Document.from_bytes(saved(file), "a.pdf", ocr=True)
    for known, text in zip(texts, document.text.split("\n\n"), strict=True):
        assert recalled(known, text) >= 0.97
        assert text.split()[:8] == known.split()[:8]
    (remark,) = document.remarks
    assert (remark.kind, remark.count) == ("recognised pages", 3)


@real
def test_columns_tables_and_notes_at_the_side_of_a_scan_are_read_in_order():
    left, right = (words(100, start).split() for start in (0, 5))
    rows = [("Item", "Count", "Price"), ("Seal", "1", "12.50"), ("Bolt", "11", "0.70")]

    def draw(canvas):
        canvas.setFont("Times-Roman", 11)
        for x, column in ((60, left), (310, right)):
            for n in range(7):
                line, column[n] = column[n:], ""
                while canvas.stringWidth(" ".join(line)) > 230:
                    line.pop()
                column[n : n + len(line)] = [" ".join(line)]
                canvas.drawString(x, 760 - 14 * n, column[n])
            del column[7:]
        for n, row in enumerate(rows):
            for x, value in zip((60, 200, 300), row, strict=True):
                canvas.drawString(x, 560 - 18 * n, value)
        canvas.translate(570, 300)
        canvas.rotate(90)
        canvas.drawString(0, 0, "Copy for the supplier")

    document = Document.from_bytes(scanned(*pictures(drawn(draw))), "a.pdf", ocr=True)
    text = document.text
    assert text.splitlines() == [*left, *right, *map(" ".join, rows), "Copy for the supplier"]


@real
def test_a_damaged_picture_is_read_as_far_as_it_shows_and_no_further(tmp_path):
    """What pdfium can't decode is white: the page stays remarked, or has the text above it."""
    known = words(60)
    with (
        pikepdf.open(io.BytesIO(scanned(*pictures(page_of(known))))) as file,
        pikepdf.open(io.BytesIO(page_of("Anna approves travel."))) as other,
    ):
        (picture,) = file.pages[0].Resources.XObject.values()
        whole = picture.read_raw_bytes()
        file.pages.append(other.pages[0])
        for kept in (0.07, 0.0):
            picture.write(whole[: int(len(whole) * kept) + 2], filter=pikepdf.Name.DCTDecode)
            document = Document.from_bytes(saved(file), "a.pdf", ocr=True)
            assert document.text.endswith("Anna approves travel.")
            found = document.text.split()[:-3]
            assert not Counter(found) - Counter(known.split()) or document.remarks
            assert document.remarks
        assert document.metadata["pages_without_text"] == [1]


def stamped(share: float, *, invisible: bool = False, letters: int = 1) -> bytes:
    """A page of A4 with a picture over a share of it and some words of text."""
    out = io.BytesIO()
    page = Canvas(out, (595, 842))
    side = share**0.5
    page.drawInlineImage(Image.new("L", (50, 50), 90), 0, 0, 595 * side, 842 * side)
    text = page.beginText(40, 700)
    text.setTextRenderMode(3 if invisible else 0)
    for _ in range(letters):
        text.textLine("Received 4 May 2026")
    page.drawText(text)
    page.save()
    return out.getvalue()


def test_words_over_a_picture_do_not_hide_that_it_is_not_read():
    (remark,) = Document.from_bytes(stamped(1.0), "a.pdf").remarks
    assert (remark.kind, remark.severity, remark.count) == ("pictures", "warning", 1)
    assert remark.location == "page 1"
    (remark,) = Document.from_bytes(stamped(0.06), "a.pdf").remarks
    assert remark.kind == "pictures"
    assert not Document.from_bytes(stamped(0.04), "a.pdf").remarks  # a letterhead
    # A scan with the text that a program recognised in it.
    assert not Document.from_bytes(stamped(1.0, invisible=True), "a.pdf").remarks


def test_a_stamped_scan_is_recognised_and_a_page_of_text_on_a_picture_is_not(tmp_path, monkeypatch):
    fake_recogniser(tmp_path, monkeypatch, GOOD)
    document = Document.from_bytes(stamped(1.0), "a.pdf", ocr=True)
    assert document.text == "Cora approves\nnothing."
    assert [remark.kind for remark in document.remarks] == ["recognised pages"]
    for data in (stamped(0.4), stamped(1.0, letters=20), stamped(1.0, invisible=True)):
        assert "Received" in Document.from_bytes(data, "a.pdf", ocr=True).text
