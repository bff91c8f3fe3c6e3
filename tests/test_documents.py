"""Documents are whole and have stable ids; what can't be had whole is refused with one sentence."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import pickle
import random
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
from fpdf import FPDF
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from selfextend_rag.documents import Document, DocumentError
from selfextend_rag.documents.encoding import decode
from selfextend_rag.documents.html import read_html

EXAMPLES = Path(__file__).parents[1] / "examples" / "documents"
FRENCH = "Le café de la gare est fermé à midi. Les élèves rentrèrent chez eux, très fatigués.\n"


def written(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pdf_bytes(*pages: str, title: str | None = None) -> bytes:
    """A PDF with one page for each text; an empty text makes a page that is only a drawing."""
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    if title:
        pdf.set_title(title)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 8, text)
        else:
            pdf.rect(20, 20, 100, 100)
    return bytes(pdf.output())


def encrypted(data: bytes, user_password: str, algorithm: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(user_password, "owner", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


# ---- plain text and Markdown ---------------------------------------------------------------------


def test_a_text_file_is_kept_as_it_is(tmp_path):
    text = "Travel rules\n\n  Anna approves travel. \t\n\fPage two.\n"
    document = Document.from_file(written(tmp_path, "rules.txt", text))
    assert document.text == text
    assert document.title == "rules"
    assert document.source == str(tmp_path / "rules.txt")
    assert document.metadata == {"format": "text", "encoding": "utf-8", "encoding_from": "content"}


@pytest.mark.parametrize("name", ["genesis.txt", "numbers.txt", "chronicles.txt", "elements.md"])
def test_the_example_documents_are_read_whole(name):
    assert Document.from_file(EXAMPLES / name).text == (EXAMPLES / name).read_text("utf-8")


def test_line_ends_are_the_only_thing_changed_in_a_text_file(tmp_path):
    document = Document.from_file(written(tmp_path, "a.txt", b"one\r\ntwo\rthree\n\r\nfour"))
    assert document.text == "one\ntwo\nthree\n\nfour"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Intro\n\n# The Handbook #\n\n## Part\n", "The Handbook"),
        ("The Handbook\n============\n\ntext\n", "The Handbook"),
        ("```sh\n# a comment\n```\n~~~\n# another\n```\n~~~\n## The Handbook\n", "The Handbook"),
        ("no heading, #hashtag\n", "notes"),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(tmp_path, text, title):
    document = Document.from_file(written(tmp_path, "notes.md", text))
    assert (document.text, document.title) == (text, title)
    assert document.metadata["format"] == "markdown"


def test_a_pipe_is_read_like_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_text, args=("from a pipe",))
    thread.start()
    document = Document.from_file(path)
    thread.join()
    assert document.text == "from a pipe"


# ---- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "reported", "evidence"),
    [
        ("utf-8", "utf-8", "content"),
        ("utf-8-sig", "utf-8", "byte order mark"),
        ("utf-16", "utf-16-le", "byte order mark"),
        ("utf-32", "utf-32-le", "byte order mark"),
        ("utf-16-le", "utf-16-le", "content"),
        ("utf-16-be", "utf-16-be", "content"),
        ("latin-1", "latin-1", "guess"),
    ],
)
@pytest.mark.parametrize("repeats", [1, 40])
def test_text_comes_back_from_each_encoding(tmp_path, codec, reported, evidence, repeats):
    path = written(tmp_path, "a.txt", (FRENCH * repeats).encode(codec))
    document = Document.from_file(path)
    assert document.text == FRENCH * repeats
    assert document.metadata["encoding"] == reported
    assert document.metadata["encoding_from"] == evidence


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("latin-1", "Grüße aus Köln"),
        ("latin-1", "På söndag åker vi till Göteborg för att hälsa på våra vänner."),
        ("cp1252", "The manager\u2019s “handbook” – version two – costs 20 €."),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je hezky, půjdeme do parku."),
        ("cp1251", "Сегодня хорошая погода, и мы пойдём гулять в парк."),
        ("koi8-r", "Сегодня хорошая погода, и мы пойдём гулять в парк."),
        ("cp1253", "Σήμερα ο καιρός είναι καλός και θα πάμε στο πάρκο."),
        ("shift_jis", "今日は天気がいいので公園に散歩に行きます。明日は雨が降るので家にいます。"),
        ("euc-jp", "今日は天気がいいので公園に散歩に行きます。明日は雨が降るので家にいます。"),
        ("iso2022_jp", "今日は天気がいいので公園に散歩に行きます。"),
        ("gb18030", "今天天气很好，我们去公园散步。明天会下雨，所以我们待在家里。" * 3),
        ("utf-16-le", "今日は 天気が\nいいので"),
    ],
)
def test_text_of_many_languages_is_recognised(codec, text):
    assert decode(text.encode(codec), "a.txt").text == text


def test_a_guessed_encoding_is_said_aloud_and_can_be_overruled(tmp_path, caplog):
    path = written(tmp_path, "a.txt", FRENCH.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        Document.from_file(path)
    assert "a.txt is not UTF-8 and was read as latin-1, which is a guess" in caplog.text
    caplog.clear()
    document = Document.from_file(path, encoding="cp1251")
    assert document.text == FRENCH.encode("latin-1").decode("cp1251")
    assert document.metadata["encoding_from"] == "given"
    assert not caplog.records


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_every_utf8_text_comes_back_unchanged(text):
    assert decode(text.encode("utf-8"), "a.txt") == (
        text.removeprefix("\ufeff"),
        "utf-8",
        "byte order mark" if text.startswith("\ufeff") else "content",
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_a_document_error(data):
    with contextlib.suppress(DocumentError):
        assert "\0" not in decode(data, "a.txt").text


# ---- HTML ----------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title> The
 Hand&shy;book </title><style>p {color: red}</style><script>track("you")</script></head><body>
<nav><a href="/">Home</a></nav>
<h1>Travel <em>rules</em></h1>
<p>Anna   approves
travel&nbsp;of <b>all</b> kinds; see H<sub>2</sub>O, 10<sup>3</sup> m.<p>Next<br>line.
<!-- not for you -->
<ul><li>bus<li><p>train</p><ol start=3><li>first class<li>second</ol><li></ul><h2></h2>
<table><tr><th>Way<th>Cost</tr><tr><td><p>Bus</p><td>12</tr><tr><td><td>13</table>
<table><tr><td><h3>Layout</h3><p>left</p></td><td>right</td></tr></table>
<pre>
 def f():
     pass
</pre><script>more()</script></body></html>"""

PAGE_TEXT = """# Travel rules

Anna approves travel of all kinds; see H2O, 10^3 m.

Next
line.

- bus
- train

  3. first class
  4. second

Way | Cost
Bus | 12
 | 13

### Layout

left

right

 def f():
     pass"""


def test_a_page_keeps_its_structure_and_loses_its_machinery(tmp_path):
    document = Document.from_file(written(tmp_path, "page.html", PAGE))
    assert document.text == PAGE_TEXT
    assert document.title == "The Handbook"
    assert document.metadata["format"] == "html"
    assert document.metadata["removed_elements"] == {"style": 1, "script": 2, "nav": 1}


@pytest.mark.parametrize("start", ["<!doctype HTML>", "<!-- saved -->\n<html>", "\n<HTML lang=en>"])
def test_html_is_recognised_under_any_name(tmp_path, start):
    page = f"{start}<body><p>one<p>two</body></html>"
    for name in ("page.txt", "page", "page.md"):
        assert Document.from_file(written(tmp_path, name, page)).text == "one\n\ntwo"


def test_text_named_like_a_page_is_kept_and_the_mismatch_said(tmp_path, caplog):
    document = Document.from_file(written(tmp_path, "page.html", "1 < 2, a <b c> d\n"))
    assert document.metadata["format"] == "html"
    with caplog.at_level(logging.WARNING):
        document = Document.from_file(written(tmp_path, "page.html", "1 < 2 and 3 > 2\n"))
    assert document.text == "1 < 2 and 3 > 2\n"
    assert "named like html but was read as the text it is" in caplog.text


@pytest.mark.parametrize("label", ["iso-8859-1", "windows-1251", "shift_jis", "koi8-r"])
def test_a_declared_encoding_is_used(tmp_path, label):
    word = {"iso-8859-1": "déjà", "shift_jis": "天気"}.get(label, "погода")
    page = f'<html><head><meta charset="{label}"></head><p>{word}</p></html>'
    document = Document.from_file(written(tmp_path, "page.html", page.encode(label)))
    assert document.text == word
    assert document.metadata["encoding"] == label
    assert document.metadata["encoding_from"] == "declaration"


def test_a_wrong_declaration_does_not_spoil_utf8(tmp_path):
    page = '<?xml version="1.0" encoding="latin-1"?><html><body><p>déjà 天気</p></body></html>'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = Document.from_file(written(tmp_path, "page.xhtml", page))
    assert document.text == "déjà 天気"


def test_pages_that_close_nothing_are_read_whole():
    text = read_html("<p>a" * 3000 + "<li>b" * 3000 + "<div>c" * 3000 + "<b>END").text
    assert [text.count(c) for c in "abc"] == [3000, 3000, 3000]
    assert text.endswith("END")


# ---- PDF -----------------------------------------------------------------------------------------


def test_the_text_of_every_page_is_taken_with_its_place(tmp_path):
    data = pdf_bytes("Anna approves travel.", "Bert approves leave.", title="The  Handbook")
    document = Document.from_file(written(tmp_path, "handbook.pdf", data))
    assert document.text == "Anna approves travel.\n\nBert approves leave."
    assert document.title == "The Handbook"
    assert document.metadata == {
        "format": "pdf",
        "pages": 2,
        "pages_without_text": [],
        "page_offsets": [0, 23],
        "unreadable_characters": 0,
    }


def test_pages_without_text_are_counted_and_said_aloud(tmp_path, caplog):
    data = pdf_bytes("", "Anna approves travel.", "", "Bert approves leave.")
    with caplog.at_level(logging.WARNING, logger="selfextend_rag"):
        document = Document.from_file(written(tmp_path, "handbook.pdf", data))
    assert document.title == "handbook"
    assert document.metadata["pages"] == 4
    assert document.metadata["pages_without_text"] == [1, 3]
    starts = document.metadata["page_offsets"]
    assert document.text[starts[1] :].startswith("Anna")
    assert document.text[starts[3] :].startswith("Bert")
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


def test_a_pdf_page_whose_content_is_damaged_is_refused(tmp_path, caplog):
    """Its text was lost or wrong, and the page said to be a picture, or nothing was said."""
    lines = " ".join(f"The party of part {i} owes {i * i} dollars." for i in range(40))
    data, rng = pdf_bytes(lines), random.Random(1)
    start = data.index(b"stream\n") + len(b"stream\n")
    end = data.index(b"\nendstream")
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        path = written(tmp_path, "a.pdf", bytes(damaged))
        with pytest.raises(DocumentError, match="is a damaged or unusual PDF"):
            Document.from_file(path)


def test_departures_from_the_pdf_format_are_one_warning(tmp_path, caplog):
    data = pdf_bytes("Anna approves travel.")
    path = written(tmp_path, "a.pdf", b"\n" + data)  # every offset is off by one
    document = Document.from_file(path)
    assert document.text == "Anna approves travel."
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("selfextend_rag")]
    (said,) = ours
    assert "does not keep to the PDF format in" in said
    assert "compare what is read with what a viewer shows" in said


def test_a_damaged_pdf_is_read_or_refused_and_lost_text_is_said_aloud(tmp_path, caplog):
    """pypdf raises errors of many kinds, some of no common base, and repairs others with a log."""
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


# ---- refusals ------------------------------------------------------------------------------------


def zip_with(*members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member in members:
            archive.writestr(member, "x")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("empty.txt", b"", "is empty (0 bytes)"),
        ("blank.txt", b" \r\n\t\n", "holds only white space"),
        ("blank.txt", " \n".encode("utf-16"), "holds only white space"),
        ("junk.bin", random.Random(0).randbytes(4096), "is not a text file"),
        ("junk.txt", b"ab\x01\x02\x03cd", "3 of its 7 characters are control codes"),
        ("zero.txt", b"hello\0world", "it holds zero bytes"),
        ("cut.txt", "naïve déjà".encode()[:-1], "1 damaged place(s), the first at byte 11"),
        ("mixed.txt", "ok déjà ".encode() + b"\xe9", "1 damaged place(s)"),
        ("cut16.txt", b"\xff\xfea\0b", "damaged at byte 2"),
        ("a.docx", zip_with("word/document.xml"), "is a Word document (.docx)"),
        ("a.odt", zip_with("mimetype", "content.xml"), "is an OpenDocument file"),
        ("a.zip", zip_with("a.txt"), "is a ZIP archive"),
        ("a.zip", b"PK\x03\x04 cut", "is a ZIP archive"),
        ("a.png", b"\x89PNG\r\n\x1a\n...", "is a PNG image"),
        ("a.webp", b"RIFF....WEBPVP8 ", "is a WebP image"),
        ("a.rtf", b"{\\rtf1 hello}", "is a Rich Text file"),
        ("a.html", b"<html><script>x()</script><body></body></html>", "left out: 1 script"),
        ("a.pdf", pdf_bytes("", ""), "no text on any of its 2 page(s)"),
        (
            "a.pdf",
            encrypted(pdf_bytes("secret"), "pass", "AES-256"),
            "is encrypted with a password",
        ),
        ("a.pdf", b"%PDF-1.7\nnothing more", "is a damaged or unusual PDF"),
    ],
)
def test_what_cannot_be_had_whole_is_refused_in_one_sentence(tmp_path, name, data, found):
    path = written(tmp_path, name, data)
    with pytest.raises(DocumentError) as caught:
        Document.from_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert found in message
    assert "; " in message, "says what to do"
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("no/such/file.txt", "does not exist; check the path"),
        (".", "is a folder; name the files in it"),
        ("/dev/zero", "is a device; name a file"),
        ("a\0b", "embedded null byte"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_what_is_no_file_is_refused(path, found):
    with pytest.raises(DocumentError, match=found):
        Document.from_file(path)


@pytest.mark.parametrize(
    ("encoding", "found"),
    [("utf-8", "at byte 6; leave it out"), ("nonsense", "no encoding that Python knows")],
)
def test_a_wrong_encoding_given_is_refused(tmp_path, encoding, found):
    path = written(tmp_path, "a.txt", FRENCH.encode("latin-1"))
    with pytest.raises(DocumentError, match=found):
        Document.from_file(path, encoding=encoding)


# ---- the type ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("encoding", ["punycode", "a\0b"])
def test_codecs_with_errors_of_their_own_are_refused_by_name(tmp_path, encoding):
    path = written(tmp_path, "a.txt", b"one two")
    with pytest.raises(DocumentError, match=r"can't be read as .*leave it out"):
        Document.from_file(path, encoding=encoding)
