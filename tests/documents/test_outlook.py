"""Messages of Outlook read like the mail that they are."""

from __future__ import annotations

import random
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import written
from tests.documents.ole import Tree, ole_bytes

_BEGIN = datetime(1601, 1, 1, tzinfo=UTC)
SENT = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)


def storage(header: int, texts: dict[int, str | bytes], numbers: dict[int, int], **others) -> Tree:
    """Properties as [MS-OXMSG] stores them: text as UTF-16, or bytes in a code page."""
    rows = b"".join(struct.pack("<IIQ", tag << 16 | 3, 6, value) for tag, value in numbers.items())
    tree: dict = {"__properties_version1.0": bytes(header) + rows, **others}
    for tag, value in texts.items():
        is_text = isinstance(value, str)
        tree[f"__substg1.0_{tag:04X}{'001F' if is_text else '001E'}"] = (
            value.encode("utf-16-le") if is_text else value
        )
    return tree


def person(kind: int, name: str, address: str) -> Tree:
    return storage(8, {0x3001: name, 0x39FE: address}, {0x0C15: kind})


def attachment(name: str, kind: str, data: bytes) -> Tree:
    return storage(8, {0x3707: name, 0x370E: kind}, {}, **{"__substg1.0_37010102": data})


def message(texts: dict[int, str | bytes] | None = None, header: int = 32, **others) -> Tree:
    sent = round((SENT - _BEGIN).total_seconds()) * 10**7
    texts = {0x37: "Prüfung", 0x0C1A: "Ann", 0x0C1F: "ann@example.org", **(texts or {})}
    people = {
        "__recip_version1.0_#00000000": person(1, "Bob", "bob@example.org"),
        "__recip_version1.0_#00000001": person(1, "Cyd", "/O=EXCHANGE/CN=CYD"),
        "__recip_version1.0_#00000002": person(2, "Dee", "Dee"),
    }
    return storage(header, texts, {0x39: sent}, **people, **others)


HEADERS = (
    "From: Ann <ann@example.org>\nTo: Bob <bob@example.org>, Cyd\nCc: Dee\n"
    "Date: Thu, 26 Nov 2026 09:30:00 +0000\nSubject: Prüfung\n\n"
)


def read(folder: Path, tree: Tree, name: str = "a.msg") -> Document:
    return Document.from_file(written(folder, name, ole_bytes(tree)))


def kinds(document: Document) -> list[tuple[str, str]]:
    return [(remark.kind, remark.severity) for remark in document.remarks]


def test_a_message_reads_with_its_headers_people_and_text(tmp_path):
    text = "Die Prüfung der Pumpe 測試.\r\n" * 200
    document = read(tmp_path, message({0x1000: text}))
    assert document.text == HEADERS + text.replace("\r\n", "\n").strip()
    assert document.title == "Prüfung"
    assert document.metadata == {"format": "msg", "messages": 1, "attachments": []}
    assert document.remarks == ()


@pytest.mark.parametrize(("page", "codec"), [(1251, "cp1251"), (932, "cp932"), (65001, "utf-8")])
def test_text_that_is_not_unicode_reads_by_the_code_page_of_the_message(tmp_path, page, codec):
    text = {"cp932": "ポンプは半年ごとに点検します。", "cp1251": "Насос проверен дважды."}
    text = text.get(codec, "Die Prüfung.")
    tree = message({0x1000: text.encode(codec)})
    tree["__properties_version1.0"] += struct.pack("<IIQ", 0x3FFD0003, 6, page)
    document = read(tmp_path, tree)
    assert document.text == HEADERS + text
    assert document.remarks == ()


def test_html_is_read_where_it_says_more(tmp_path):
    page = "<meta charset=windows-1252><table><tr><td>Größe<td>12</table>".encode("cp1252")
    html = {"__substg1.0_10130102": page}
    assert read(tmp_path, message(**html)).text == HEADERS + "Größe | 12"
    both = read(tmp_path, message({0x1000: "Größe 12 und mehr"}, **html))
    assert both.text == HEADERS + "Größe 12 und mehr"


def test_attachments_are_named_and_messages_in_it_are_read(tmp_path):
    inner = message({0x1000: "The inner text."}, header=24)
    document = read(
        tmp_path,
        message(
            {0x1000: "Outer."},
            **{
                "__attach_version1.0_#00000000": attachment("Maß.pdf", "application/pdf", b"x" * 9),
                "__attach_version1.0_#00000001": attachment("raw", "", b""),
                "__attach_version1.0_#00000002": storage(
                    8, {}, {}, **{"__substg1.0_3701000D": inner}
                ),
            },
        ),
    )
    assert document.text == f"{HEADERS}Outer.\n\nAttached message:\n\n{HEADERS}The inner text."
    assert document.metadata["attachments"] == [
        "Maß.pdf (application/pdf, 9 bytes)",
        "raw (application/octet-stream, 0 bytes)",
    ]
    assert kinds(document) == [("attached files", "warning")]


def test_text_in_rich_text_alone_and_fields_of_appointments_are_remarked(tmp_path):
    document = read(
        tmp_path, message({0x1A: "IPM.Appointment"}, **{"__substg1.0_10090102": b"LZFu"})
    )
    assert ("unread Rich Text", "loss") in kinds(document)
    assert ("no letter", "warning") in kinds(document)


def test_other_files_of_this_container_are_refused_by_what_they_are(tmp_path):
    for stream, found in (
        ("WordDocument", r"an old Word file \(.doc\)"),
        ("EncryptedPackage", "an office file encrypted with a password"),
        ("Other", "an old Microsoft Office file"),
    ):
        with pytest.raises(DocumentError, match=f"is {found}"):
            read(tmp_path, {stream: b"x" * 5000, "b": b"short"})


def test_without_olefile_the_refusal_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "olefile", None)
    with pytest.raises(DocumentError, match=r'pip install "selfextend-rag\[office\]"'):
        read(tmp_path, message())


def test_a_damaged_message_is_read_or_refused_and_never_fails(tmp_path):
    inner = storage(8, {}, {}, **{"__substg1.0_3701000D": message(header=24)})
    data = ole_bytes(message({0x1000: "Text. " * 900}, **{"__attach_version1.0_#00000000": inner}))
    rng = random.Random(5)
    read_or_refused = [0, 0]
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice((1, 1, 4))] = rng.randbytes(rng.choice((1, 4)))
        try:
            read_or_refused[0] += bool(
                Document.from_file(written(tmp_path, "a.msg", bytes(damaged))).text
            )
        except DocumentError:
            read_or_refused[1] += 1
    assert min(read_or_refused) > 10
