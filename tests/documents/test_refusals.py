"""What can't be had whole is refused with one sentence."""

from __future__ import annotations

import io
import random
import zipfile

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import FRENCH, encrypted, pdf_bytes, written


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
        ("junk.txt", b"ab\x01\x02\x03cd", "3 of its 7 bytes are control codes"),
        ("zero.txt", b"hello\0world", "it holds zero bytes"),
        (
            "cut.txt",
            "naïve déjà".encode()[:-1],
            "in position 11: unexpected end of data); it is damaged",
        ),
        (
            "mixed.txt",
            "ok déjà ".encode() + b"\xe9",
            "in position 10: unexpected end of data); it is damaged",
        ),
        ("cut16.txt", b"\xff\xfea\0b", "in position 2: truncated data); it is damaged"),
        ("a.docx", zip_with("word/document.xml"), "is a damaged or unusual office"),
        ("a.odt", zip_with("mimetype", "content.xml"), "is a damaged or unusual office"),
        ("a.xlsb", zip_with("xl/workbook.bin"), "is a ZIP archive (xlsb)"),
        ("a.zip", zip_with("a.txt"), "is a ZIP archive"),
        ("a.zip", b"PK\x03\x04 cut", "is a damaged ZIP archive or office file"),
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
    [("utf-8", "in position 6: .*; leave it out"), ("nonsense", "unknown encoding: nonsense")],
)
def test_a_wrong_encoding_given_is_refused(tmp_path, encoding, found):
    path = written(tmp_path, "a.txt", FRENCH.encode("latin-1"))
    with pytest.raises(DocumentError, match=found):
        Document.from_file(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["punycode", "a\0b"])
def test_codecs_with_errors_of_their_own_are_refused_by_name(tmp_path, encoding):
    path = written(tmp_path, "a.txt", b"one two")
    with pytest.raises(DocumentError, match=r"can't be read as .*leave it out"):
        Document.from_file(path, encoding=encoding)
