"""What pdfium repairs, drops or can't finish is refused or remarked, wherever it is called from."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
import textwrap
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor

import pikepdf
import pytest
from pikepdf import Dictionary, Name

from selfextend_rag.documents import Document, DocumentError, pdf
from selfextend_rag.documents.pdf import read_pdf
from tests.documents.files import pdf_bytes, written
from tests.documents.pdf_corpus import (
    HELVETICA,
    at,
    by_hand,
    cid_font,
    saved,
    shown,
)

CHROMIUM = shutil.which("chromium")


def read(data: bytes) -> tuple[str, dict[str, tuple[str, int]]]:
    content = read_pdf(data, "a.pdf")
    return content.text, {
        remark.kind: (remark.severity, remark.count) for remark in content.remarks
    }


def with_content(data: bytes, filters: object) -> bytes:
    with pikepdf.open(io.BytesIO(by_hand(at(72, 700, shown("Replaced"))))) as file:
        file.pages[0].Contents.write(data, filter=filters)
        return saved(file)


def test_pages_that_the_page_tree_leaves_out_are_remarked():
    """Pdfium believes a page count that is too small, and says nothing of the other pages."""
    data = pdf_bytes("Anna approves travel.", "Bert approves leave.")
    text, remarks = read(data.replace(b"/Count 2", b"/Count 1"))
    assert text == "Anna approves travel."
    assert remarks == {"pages outside the document": ("warning", 1)}


def test_a_wrong_checksum_is_a_loss_and_a_broken_stream_a_refusal():
    content = at(72, 700, shown("All of it. " * 50)).encode()
    packed = zlib.compress(content)
    wrong = packed[:-1] + bytes([packed[-1] ^ 1])
    text, remarks = read(with_content(wrong, Name.FlateDecode))
    assert text.startswith("All of it. All of it.")
    assert remarks == {"damaged content": ("loss", 1)}
    broken = packed[:20] + b"\xff" * 8 + packed[28:]
    twice = base64.a85encode(broken) + b"~>"
    filters = pikepdf.Array([Name.ASCII85Decode, Name.FlateDecode])
    for data in (with_content(broken, Name.FlateDecode), with_content(twice, filters)):
        with pytest.raises(DocumentError, match="1 of its streams are damaged"):
            read(data)
    whole = with_content(base64.a85encode(packed) + b"~>", filters)
    assert read(whole) == (text, {})


def test_codes_that_no_table_explains_are_counted_where_they_are_shown():
    """Their glyph numbers came out as letters or control characters, or as nothing at all."""
    font = {**HELVETICA, "/Encoding": Dictionary(Differences=[1, Name("/g21"), Name("/A")])}
    text, remarks = read(by_hand(at(72, 700, "<0201020202> Tj"), font=font))
    assert text == "A\ufffdAAA"
    assert remarks == {"unreadable characters": ("loss", 1)}
    with pytest.raises(DocumentError, match="4 characters, of which 4 are unreadable"):
        read(by_hand(at(72, 700, "<01010101> Tj"), font=font))
    outside = cid_font("90ms-RKSJ-H", "Japan1")
    text, remarks = read(by_hand(at(72, 700, "<93fa967bff8cea> Tj"), font=outside))
    assert remarks["unreadable characters"][0] == "loss"


def test_runs_of_text_that_pdfium_drops_for_their_size_are_remarked():
    narrow = cid_font("Identity-H", "Japan1")
    narrow["/DescendantFonts"][0].DW = 0
    narrow["/DescendantFonts"][0].W = pikepdf.Array([845, pikepdf.Array([1000])])
    runs = "".join(at(72, 700 - 20 * n, "<034b034c> Tj") for n in range(3))
    data = by_hand(at(72, 740, "<034d034d> Tj") + runs, font=narrow)
    text, remarks = read(data)
    assert text == "いい"
    assert remarks == {"text without size": ("loss", 3)}


def test_runs_that_fill_gaps_in_others_are_read_where_they_are():
    """LibreOffice draws letters that a font lacks after the line: Vietnamese lost its vowels."""
    line = at(72, 700, "[(D) -556 (ng Th) -222 (, all in order)] TJ") + at(80.66, 700, shown("a"))
    line += at(72 + 12 * (0.722 + 0.556 * 3 + 0.278 + 0.611 + 0.556), 700, shown("i"))
    assert read(by_hand(line + at(72, 680, shown("Next line."))))[0] == (
        "Dang Thi, all in order\nNext line."
    )


def seen(*lines: str | list[str], heights: dict[str, float] | None = None) -> bytes:
    """Lines of glyphs as they are seen, from left to right, each known by the text it is.

    Glyphs that have a height are placed apart, so much higher; marks over the letter that follows.
    """
    glyphs = dict.fromkeys(glyph for line in lines for glyph in line)
    codes = {glyph: 0x21 + number for number, glyph in enumerate(glyphs)}
    content = "".join(
        at(72, 700 - 20 * row, f"<{bytes(codes[glyph] for glyph in line).hex()}> Tj")
        for row, line in enumerate([] if heights else lines)
    )
    for row, line in enumerate(lines if heights else []):
        x = 72.0
        for glyph in line:
            up = heights.get(glyph, 0.0)
            content += at(x + 0.7 * bool(up), 700 - 20 * row + up, f"<{codes[glyph]:02x}> Tj")
            x += 0.0 if up and len(glyph) == 1 else 6.0
    known = "".join(
        f"<{code:02x}> <{glyph.encode('utf-16-be').hex()}>\n" for glyph, code in codes.items()
    )
    font = {**HELVETICA, "/FirstChar": 0x21, "/LastChar": 0xFF, "/Widths": [500] * 0xDF}
    with pikepdf.open(io.BytesIO(by_hand(content, font=font))) as file:
        table = (
            f"1 begincodespacerange <00> <ff> endcodespacerange {len(codes)} beginbfchar {known}"
        )
        stream = file.make_stream(f"begincmap {table} endbfchar endcmap".encode())
        file.pages[0].Resources.Font["/F1"].ToUnicode = stream
        return saved(file)


@pytest.mark.parametrize(
    ("line", "read_as"),
    [
        ("םולש", "שלום"),
        ("Python 3.11 לש 2.0 הסרג", "גרסה 2.0 של Python 3.11"),
        ("לומתא Word Manual תא יתארק", "קראתי את Word Manual אתמול"),
        ("[7 ומע] 15%-ב (ללוכ) 1,234.50 ריחמ", "מחיר 1,234.50 (כולל) ב-15% [עמו 7]"),
        ("2024-05-17 ךיראת", "תאריך 2024-05-17"),
        # Some programs write which brackets are meant, and not how they are seen.
        (")ללוכ( ריחמ", "מחיר (כולל)"),
        # In Arabic, a hyphen parts numbers; the two letters of a ligature are one glyph.
        ("17-05-2024 لصفلا", "الفصل 2024-05-17"),
        ([*"ن", "لا", *"او هلإ ", "لا"], "لا إله والان"),
        (["ه", "ל\u05b9", *"ש"], "של\u05b9ه"),
    ],
)
def test_lines_that_are_read_to_the_left_are_in_order_whatever_is_in_them(line, read_as):
    """pdfium exchanged Latin words and numbers, mirrored brackets and the letters of ligatures."""
    assert read(seen(line, "הוראות"[::-1] * 4))[0].split("\n")[0] == read_as


@pytest.mark.parametrize(
    "line",
    [
        "بِسْمِ اللَّهِ الرَّحِيمِ",
        "يُفْحَصُ مَرَّتَيْنِ (فِي السَّنَةِ) وَتُكَلِّفُ 12.50",
        "שָׁלוֹם עוֹלָם 7",
        "e\u0301le\u0300ve x\u0302 q\u0307",
    ],
)
def test_vowel_signs_that_are_placed_one_by_one_are_at_their_letters(line):
    """pdfium began a line at each that is higher or lower than the letters, and mixed up words."""
    line = unicodedata.normalize("NFD", line)
    marked = re.findall(r"\d[\d.]*|.[\u0300-\u036f\u05b0-\u05c7\u064b-\u0652]*", line)
    if unicodedata.bidirectional(line[0]) != "L":
        marked = [part.translate({40: ")", 41: "("}) for part in reversed(marked)]
    glyphs = [c for part in marked for c in ([*part] if part[0].isdigit() else reversed(part))]
    marks = sorted({glyph for glyph in glyphs if unicodedata.combining(glyph)})
    heights = {mark: (-1.5, 2.6, 1.4)[number % 3] for number, mark in enumerate(marks)}
    assert read(seen(glyphs, "next", heights=heights))[0].split("\n") == [line, "next"]


def test_letters_that_are_known_by_their_marks_are_in_order():
    """As Chromium prints them: the mark's glyph is the text of both, the letter's has none."""
    line = unicodedata.normalize("NFD", "بِسْمِ اللَّهِ الرَّحِيمِ")
    glyphs = re.findall(r".[\u064b-\u0652]*", line)[::-1]
    heights = {glyph: (-1.5, 2.6)[len(glyph) - 2] for glyph in glyphs if len(glyph) > 1}
    text, remarks = read(seen(glyphs, "next", heights=heights))
    assert (text.split("\n"), remarks) == ([line, "next"], {})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_vowel_signs_that_a_browser_prints_are_in_order_and_guesses_are_remarked(tmp_path):
    """Words came out in pieces, in another order, without a remark."""
    lines = "بِسْمِ اللَّهِ الرَّحْمَٰنِ الرَّحِيمِ", "الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ", "שָׁלוֹם (עוֹלָם) 12.5"
    body = "".join(f"<p dir=rtl>{line}</p>" for line in lines)
    page = written(tmp_path, "a.html", f"<meta charset=utf-8><body>{body}")
    out = tmp_path / "a.pdf"
    options = ("--headless", "--no-sandbox", "--no-pdf-header-footer", f"--print-to-pdf={out}")
    subprocess.run([CHROMIUM, *options, page.as_uri()], check=True, capture_output=True)
    text, remarks = read(out.read_bytes())
    both = zip(text.split("\n"), lines, strict=True)
    assert all(_letters(found) == _letters(line) for found, line in both)
    assert list(remarks) == ["letters without a place"]


def _letters(line: str) -> str:
    return unicodedata.normalize("NFD", "".join(line.split()))


def test_words_of_another_direction_in_a_page_that_is_read_to_the_right():
    line = "The word (ללוכ 2 םולש) is here 3"
    assert read(seen(line, "Most of the page is English."))[0].split("\n")[0] == (
        "The word (שלום 2 כולל) is here 3"
    )


def test_attached_files_are_named():
    with pikepdf.open(io.BytesIO(pdf_bytes("See the annex."))) as file:
        file.attachments["annex.txt"] = b"more"
        file.attachments["Größe.csv"] = b"1"
        content = read_pdf(saved(file), "a.pdf")
    assert sorted(content.metadata["attachments"]) == ["Größe.csv", "annex.txt"]
    (remark,) = content.remarks
    assert (remark.severity, remark.count) == ("warning", 2)
    assert "annex.txt" in remark.message
    assert "Größe.csv" in remark.message


def test_files_attached_to_a_page_are_named():
    with pikepdf.open(io.BytesIO(pdf_bytes("See the annex.", "And this."))) as file:
        for page, name in zip(file.pages, ("annex.txt", "plan.csv"), strict=True):
            embedded = Dictionary(F=file.make_stream(b"more"))
            holder = Dictionary(Type=Name.Filespec, F=name, UF=name, EF=embedded)
            note = {"Type": Name.Annot, "Subtype": Name.FileAttachment, "Rect": [9, 9, 29, 29]}
            page.Annots = file.make_indirect([Dictionary(**note, FS=holder)])
        content = read_pdf(saved(file), "a.pdf")
    assert content.metadata["attachments"] == ["annex.txt", "plan.csv"]
    assert [(r.kind, r.count) for r in content.remarks] == [("attached files", 2)]


def test_a_form_value_follows_its_label_and_a_table_row_is_one_line():
    cells = [("Item", "A", "4"), ("Seal", "B", "7"), ("Bolt", "C", "9")]
    rows = "".join(
        at(x, 700 - 16 * n, shown(value))
        for n, row in enumerate(cells)
        for x, value in zip((72, 150, 260), row, strict=True)
    )
    assert read(by_hand(rows))[0] == "Item A 4\nSeal B 7\nBolt C 9"
    power = (
        at(72, 700, shown("E = mc")) + at(110.6, 705, shown("2"), 7) + at(117, 700, shown("holds"))
    )
    assert read(by_hand(power + at(72, 680, shown("always"))))[0] == "E = mc2 holds\nalways"
    digits = "".join(at(72 + 20 * n, 700, shown(str(n))) for n in range(7))
    assert read(by_hand(digits))[0] == "0 1 2 3 4 5 6"
    leaders = at(72, 700, "[(Costs)" + "-300(.)" * 20 + "-300(12)] TJ")
    assert read(by_hand(leaders))[0] == "Costs" + " ." * 20 + " 12"


def test_a_form_without_any_other_text_is_read():
    """It was said to be a scan, or its empty content to be damaged."""
    with pikepdf.open(io.BytesIO(by_hand(""))) as file:
        field = {"Type": Name.Annot, "Subtype": Name.Widget, "FT": Name.Tx, "T": "a"}
        field |= {"V": "Only a value", "Rect": [100, 600, 300, 620], "DA": "/Helv 0 Tf 0 g"}
        file.pages[0].Annots = pikepdf.Array([file.make_indirect(Dictionary(**field))])
        file.Root.AcroForm = Dictionary(Fields=file.pages[0].Annots)
        assert read(saved(file)) == ("Only a value", {})


def test_a_file_named_pdf_whose_header_is_damaged_is_refused(tmp_path):
    """Its source was read as text."""
    data = pdf_bytes("Anna approves travel.").replace(b"%PDF-", b"%\xff\xff-", 1)
    for name in ("a.pdf", "a.txt"):
        with pytest.raises(DocumentError, match="header %PDF- is damaged"):
            Document.from_file(written(tmp_path, name, data))
    about = "A PDF has objects, such as 1 0 obj << >> endobj, after its header."
    assert Document.from_file(written(tmp_path, "a.txt", about)).text == about
    assert Document.from_file(written(tmp_path, "b.pdf", "Not a PDF at all.")).remarks


def bomb(levels: int) -> bytes:
    """A page that draws a form that draws a form ten times, and so on."""
    with pikepdf.open(io.BytesIO(by_hand(at(72, 700, shown("x"))))) as file:
        page = file.pages[0]
        form = {"Type": Name.XObject, "Subtype": Name.Form, "BBox": [0, 0, 612, 792]}
        inner = file.make_stream(at(72, 700, shown("again")).encode(), **form)
        inner.Resources = page.Resources
        for _ in range(levels):
            outer = file.make_stream(b"/X Do " * 10, **form)
            outer.Resources = Dictionary(XObject=Dictionary(X=inner))
            inner = outer
        page.Contents = file.make_stream(b"/X Do")
        page.Resources = Dictionary(XObject=Dictionary(X=inner))
        return saved(file)


def test_a_page_over_the_limit_of_time_or_memory_is_refused(monkeypatch):
    assert read(bomb(1))[0] == "again"
    if sys.platform == "linux":  # others do not limit a process's memory
        monkeypatch.setattr(pdf, "_MEMORY", 300 << 20)
        monkeypatch.setattr(pdf, "_SECONDS", 120.0)
        with pytest.raises(DocumentError, match="300 MiB of memory"):
            read(bomb(12))
    monkeypatch.setattr(pdf, "_MEMORY", 2 << 30)
    monkeypatch.setattr(pdf, "_SECONDS", 0.5)
    with pytest.raises(DocumentError, match=r"one of its pages takes longer than 0\.5 s"):
        read(bomb(12))


def test_files_are_read_at_once_and_in_programs_that_are_no_interpreter(monkeypatch):
    files = [pdf_bytes(f"Clause {n} holds.") for n in range(8)]
    expected = [f"Clause {n} holds." for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert [content.text for content in pool.map(read_pdf, files, "abcdefgh")] == expected
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    with ThreadPoolExecutor(8) as pool:
        assert [content.text for content in pool.map(read_pdf, files, "abcdefgh")] == expected


def test_a_program_without_a_file_or_a_guard_reads(tmp_path):
    written(tmp_path, "a.pdf", pdf_bytes("Anna approves travel."))
    program = textwrap.dedent("""
        import sys
        from selfextend_rag.documents import Document
        sys.stdout.write(Document.from_file("a.pdf").text)
    """)
    script = written(tmp_path, "script.py", program)
    for command, given in (([script], ""), (["-c", program], ""), ([], program)):
        done = subprocess.run(
            [sys.executable, *command], input=given, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == "Anna approves travel.", done.stderr
