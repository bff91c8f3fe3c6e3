"""Mail reads as its reader sees it, and what the text leaves out is remarked."""

from __future__ import annotations

import base64
import binascii
import quopri
import random
import time
from email.message import EmailMessage, Message
from pathlib import Path

import pytest

from selfextend_rag.documents import Document, DocumentError
from tests.documents.files import FRENCH, pdf_bytes, written

HEADERS = "From: Ann <ann@example.org>\nTo: bob@example.org\nSubject: Seal\nMIME-Version: 1.0\n"
TOP = "From: Ann <ann@example.org>\nTo: bob@example.org\nSubject: Seal\n\n"


def mail(body: bytes | str, *headers: str, ends: str = "\n") -> bytes:
    head = HEADERS + "".join(f"{line}\n" for line in headers) + "\n"
    return head.replace("\n", ends).encode() + (body.encode() if isinstance(body, str) else body)


def read(folder: Path, data: bytes | Message, name: str = "a.eml") -> Document:
    return Document.from_file(written(folder, name, bytes(data)))


def remarks(document: Document) -> dict[str, tuple[str, int]]:
    return {remark.kind: (remark.severity, remark.count) for remark in document.remarks}


def composed(text: str, html: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Ann", "Bob, Cyd", "Seal"
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message


@pytest.mark.parametrize("coding", ["uu", "base64"])
def test_files_written_into_the_text_are_named_and_are_no_text(tmp_path, coding):
    """Nine lines of M-, as programs before MIME attached files, were read as prose."""
    data = bytes(range(256)) * 2
    if coding == "uu":
        lines = [binascii.b2a_uu(data[at : at + 45]).decode() for at in range(0, len(data), 45)]
        block = f"begin 644 plan a.pdf\n{''.join(lines)}`\nend\n"
    else:
        block = f"begin-base64 644 plan a.pdf\n{base64.encodebytes(data).decode()}====\n"
    prose = "begin 1 day before the\nend of May"
    document = read(tmp_path, mail(f"See the plan.\n\n{block}\n{prose}\n"))
    assert document.text == f"{TOP}See the plan.\n\n\n\n{prose}"
    assert document.metadata["attachments"] == ["plan a.pdf (written into the text, 512 bytes)"]
    assert remarks(document) == {"attached files": ("warning", 1)}


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", FRENCH),
        ("iso-8859-1", FRENCH),
        ("windows-1251", "Насос проверен дважды, и протокол подписан главным инженером.\n"),
        ("iso-2022-jp", "ポンプは半年ごとに点検します。次の点検は十月です。\n"),
        ("euc-kr", "펌프는 반년마다 점검합니다. 다음 점검은 시월입니다.\n"),
        ("gb2312", "水泵每半年检查一次，下次检查在十月。请提前通知值班工程师。\n"),
        ("utf-7", FRENCH),
        ("hz-gb-2312", "水泵每半年检查一次，下次检查在十月。\n"),
    ],
)
@pytest.mark.parametrize("transfer", ["base64", "quoted-printable", "8bit"])
def test_a_body_reads_in_its_character_set_however_it_was_sent(tmp_path, charset, text, transfer):
    data = text.encode(charset)
    sent = {"base64": base64.encodebytes, "quoted-printable": quopri.encodestring, "8bit": bytes}
    head = [
        f"Content-Type: text/plain; charset={charset}",
        f"Content-Transfer-Encoding: {transfer}",
    ]
    document = read(tmp_path, mail(sent[transfer](data), *head))
    assert document.text == TOP + text.strip()
    assert document.remarks == ()
    assert (document.title, document.metadata["format"]) == ("Seal", "eml")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("=?utf-8?q?Pr=C3=BCfung?= am =?iso-8859-1?b?TW9udGFn?=", "Prüfung am Montag"),
        ("=?utf-8?b?44Od44Oz44M=?=\n =?utf-8?b?l+eCueaknA==?=", "ポンプ点検"),
        ("=?iso-2022-jp?B?GyRCRUA4IRsoQg==?=", "点検"),
        ("Prüfung", "Prüfung"),
        ("=?x-nonsense?q?Pr=C3=BCfung?=", "Prüfung"),
        ("=?utf-8?b?broken*?=", "=?utf-8?b?broken*?="),
        ("one\n two", "one two"),
    ],
)
def test_headers_read_as_their_words_mean(tmp_path, subject, expected):
    """The second is cut within a character, as some programs do, where readers often fail."""
    data = f"Subject: {subject}\nTo: a@b\nTo: c@d\nCC: e@f\n\ntext".encode()
    document = read(tmp_path, data)
    assert document.title == expected
    assert document.text == f"To: a@b, c@d\nCc: e@f\nSubject: {expected}\n\ntext"


def test_a_header_as_long_as_no_letter_has_takes_no_time(tmp_path):
    """The library took 20 s for this one, four times that for twice of it."""
    started = time.monotonic()
    document = read(tmp_path, mail("x", "Subject: " + "=?utf-8?q?x?= " * 100_000))
    assert time.monotonic() - started < 10
    assert remarks(document)["long header"] == ("warning", 1)


def test_a_body_without_a_character_set_is_found_out_and_a_damaged_one_remarked(tmp_path):
    undeclared = read(tmp_path, mail(FRENCH.encode("latin-1"), "Content-Type: text/plain"))
    assert undeclared.text == TOP + FRENCH.strip()
    assert "guessed encoding" in remarks(undeclared)
    declared = "Content-Type: text/plain; charset=utf-8"
    damaged = read(
        tmp_path, mail(FRENCH.encode().replace(b"\xc3\xa9 \xc3\xa0", b"\xc3 \xc3\xa0"), declared)
    )
    assert damaged.text == TOP + FRENCH.strip().replace("é à", "\ufffd à")
    assert remarks(damaged) == {"unreadable characters": ("loss", 1)}


def test_the_form_that_says_more_is_read_and_words_of_the_other_are_remarked(tmp_path):
    table = "<table><tr><th>Part<th>Price<tr><td>Seal<td>12.50</table>"
    same = read(tmp_path, composed("Part Price: Seal 12.50 https://example.org/x", table))
    assert same.text.endswith("\n\nPart | Price\nSeal | 12.50")
    assert same.remarks == ()
    plain = read(tmp_path, composed("Part Price Seal 12.50 and the freight", "<p>Part: Seal</p>"))
    assert plain.text.endswith("Part Price Seal 12.50 and the freight")
    more = read(tmp_path, composed("Part Seal, see below", f"<p>all of it</p>{table}"))
    assert more.text.endswith("Seal | 12.50")
    assert remarks(more) == {"other forms": ("warning", 2)}
    assert "see, below" in more.remarks[0].message
    picture = read(tmp_path, composed("Words", "<img src=x>"))
    assert picture.text.endswith("\n\nWords")
    assert picture.remarks == ()


def test_attachments_are_named_with_kind_and_size_and_messages_in_it_are_read(tmp_path):
    inner = composed("The inner text.")
    inner.add_attachment(b"12345", maintype="image", subtype="png", filename="in.png")
    message = composed("Outer text.")
    pdf = pdf_bytes("x")
    message.add_attachment(pdf, maintype="application", subtype="pdf", filename="Prüfung.pdf")
    message.add_attachment("a,b", filename="rows.csv")
    message.add_attachment(inner)
    document = read(tmp_path, message)
    assert document.title == "Seal"
    assert document.text == (
        "From: Ann\nTo: Bob, Cyd\nSubject: Seal\n\nOuter text.\n\nAttached message:\n\n"
        "From: Ann\nTo: Bob, Cyd\nSubject: Seal\n\nThe inner text."
    )
    assert document.metadata["attachments"] == [
        f"Prüfung.pdf (application/pdf, {len(pdf)} bytes)",
        "rows.csv (text/plain, 4 bytes)",
        "in.png (image/png, 5 bytes)",
    ]
    assert remarks(document) == {"attached files": ("warning", 3)}
    assert "Prüfung.pdf" in document.remarks[0].message


def test_pictures_shown_in_the_text_are_counted_apart_from_attachments(tmp_path):
    message = composed("Plain", "<p>Plain <img src='cid:1'></p>")
    form = message.get_payload(1)
    form.add_related(b"GIF8", maintype="image", subtype="gif", cid="<1>")
    form.add_related(b"%PDF-", maintype="application", subtype="pdf", filename="a.pdf")
    message.add_attachment("BEGIN:VCALENDAR", subtype="calendar", filename="date.ics")
    document = read(tmp_path, message)
    assert document.text.endswith("Subject: Seal\n\nPlain")
    kinds = remarks(document)
    assert kinds["resources"] == ("note", 1)
    assert kinds["attached files"] == ("warning", 2)


@pytest.mark.parametrize(
    ("body", "header", "kind", "severity"),
    [
        ("", "Content-Type: text/plain", "no text", "warning"),
        ("MIIB", "Content-Type: application/pkcs7-mime; name=smime.p7m", "encrypted", "loss"),
        ("x", "Content-Type: multipart/encrypted; boundary=b", "encrypted", "loss"),
        ("<img>", "Content-Type: text/html", "unread HTML", "loss"),
        (
            "--b\n\nonly start",
            "Content-Type: multipart/mixed; boundary=b",
            *("departures from the format", "warning"),
        ),
        ("no boundary", "Content-Type: multipart/mixed", "departures from the format", "warning"),
        ("UHVtcA", "Content-Transfer-Encoding: base64", "departures from the format", "warning"),
        ("UHVtc", "Content-Transfer-Encoding: base64", "departures from the format", "warning"),
    ],
)
def test_what_a_message_does_not_say_is_remarked(tmp_path, body, header, kind, severity):
    document = read(tmp_path, mail(body, header))
    assert document.text.startswith(TOP.strip())
    assert remarks(document)[kind][0] == severity


def test_text_in_a_message_without_the_boundary_it_names_is_not_lost(tmp_path):
    document = read(tmp_path, mail("All of it.", "Content-Type: multipart/mixed; boundary=none"))
    assert document.text == TOP + "All of it."


def test_a_mailbox_is_read_message_by_message_and_each_has_its_place(tmp_path):
    bodies = ["From here on,\nall is well.", ">From there, too.", "The last."]
    box = "".join(
        f"From ann Thu Jan  1 10:00:0{n} 2026\n{HEADERS}\n{body}\n\n"
        for n, body in enumerate(bodies)
    )
    for ends in ("\n", "\r\n"):
        document = read(tmp_path, box.replace("\n", ends).encode(), "a.mbox")
        assert document.metadata == {"format": "mbox", "messages": 3, "attachments": []}
        assert document.text == "\n\n".join(TOP + body.removeprefix(">") for body in bodies)
        for number, body in enumerate(bodies, 1):
            at = document.text.index(body.removeprefix(">"))
            assert document.location(at, at + 5) == f"message {number}"
        assert document.title == "a"


PAGE = "<html><head><title>Prices</title></head><body><p>Gespeicherte Sätze.</p></body></html>"


@pytest.mark.parametrize("charset", ["utf-8", "windows-1252"])
@pytest.mark.parametrize("name", ["a.mht", "a.doc"])
def test_a_page_saved_as_mail_is_its_text_alone(tmp_path, charset, name):
    page = quopri.encodestring(PAGE.encode(charset)).decode()
    coded = "Content-Transfer-Encoding: quoted-printable"
    parts = [
        f"Content-Type: text/html; charset={charset}\n{coded}\n\n{page}",
        "Content-Type: text/css\nContent-Location: a.css\n\np { color: red }",
        "Content-Type: text/html\nContent-Location: b.html\n\n<p>A frame.</p>",
    ]
    body = "".join(f"--b\n{part}\n" for part in parts) + "--b--\n"
    head = (
        "From: <Saved by Blink>\nMIME-Version: 1.0\nContent-Type: multipart/related; boundary=b\n\n"
    )
    document = read(tmp_path, (head + body).encode(), name)
    assert (document.text, document.title) == ("Gespeicherte Sätze.", "Prices")
    assert document.metadata["format"] == "mhtml"
    assert remarks(document) == {"frames": ("warning", 1), "resources": ("note", 1)}


def test_mail_is_recognised_by_its_headers_and_text_that_looks_alike_is_not(tmp_path):
    data = mail(base64.b64encode(b"The text."), "Content-Transfer-Encoding: base64", ends="\r\n")
    assert read(tmp_path, data, "letter.txt").text == TOP + "The text."
    assert read(tmp_path, b"%d\n%s<plist>" % (len(data), data), "1.emlx").text == TOP + "The text."
    for text in ("From: me\nSubject: x\n\nnot sent", "Note: the MIME-Version: 1.0 header\n"):
        assert read(tmp_path, text.encode(), "a.txt").text == text
    named = read(tmp_path, b"Just words.\n", "a.eml")
    assert named.metadata["format"] == "text"
    assert "misnamed" in remarks(named)


@pytest.mark.parametrize("name", ["utf\0", "no-such", "rot13", "undefined"])
def test_a_character_set_that_is_none_is_no_error(tmp_path, name):
    """The library decodes non-ASCII text by the name it finds, even one with a zero in it."""
    head = f"Content-Type: text/plain; charset={name}"
    assert read(tmp_path, mail(FRENCH, head)).text == TOP + FRENCH.strip()


def test_an_empty_message_of_a_mailbox_moves_no_place(tmp_path):
    start = "From ann Thu Jan  1 10:00:00 2026\n"
    box = f"{start}X: y\n\n\n\n{start}{HEADERS}\nThe text.\n\n{start}X: y\n\n"
    document = read(tmp_path, box.encode(), "a.mbox")
    assert document.text == TOP + "The text."
    assert document.location(0, len(document.text)) == "message 2"


def test_parts_nested_out_of_all_reason_are_refused(tmp_path):
    deep = "".join(f"Content-Type: multipart/mixed; boundary={n}\n\n--{n}\n" for n in range(3000))
    with pytest.raises(DocumentError, match="nested too deeply"):
        read(tmp_path, (HEADERS + deep).encode())


def test_damaged_mail_is_read_or_refused_and_never_fails(tmp_path):
    message = composed("Plain Prüfung", "<p>Prüfung <b>eins</b></p>")
    message["Date"] = "Thu, 26 Nov 2026 10:00:00 +0100"
    message.add_attachment(b"12345", maintype="image", subtype="png", filename="Maß.png")
    message.add_attachment(composed("inner"))
    data, rng = bytes(message), random.Random(3)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice((1, 1, 1, 40))] = rng.randbytes(rng.choice((0, 1, 9)))
        try:
            assert read(tmp_path, bytes(damaged)).text
        except DocumentError:
            continue


def test_a_line_that_begins_like_a_message_is_not_the_start_of_one(tmp_path):
    """The line was left out."""
    start = "From a@b Mon Jan  1 12:00:00 2024\n"
    body = "one\n\nFrom dusk at 10:00 till dawn\nmore\n\n"
    document = read(tmp_path, (start + TOP + body + start + TOP + "two\n").encode(), "a.mbox")
    assert "one\n\nFrom dusk at 10:00 till dawn\nmore" in document.text
    assert document.metadata["messages"] == 2


def test_lines_that_a_program_wrapped_are_one(tmp_path):
    """Addresses longer than a line came out in two, with a space in between."""
    head = "Content-Type: text/plain; format=flowed; delsp={}"
    body = "See http://example.org/a/ \nlong and \n more.\nEnd\n> so  \n> it is\n>\n-- \nAnn\n"
    said = read(tmp_path, mail(body, head.format("yes"))).text.split("\n\n", 1)[1]
    assert said == "See http://example.org/a/long andmore.\nEnd\n> so it is\n>\n-- \nAnn"
    said = read(tmp_path, mail(body, head.format("no"))).text.split("\n\n", 1)[1]
    assert said.startswith("See http://example.org/a/ long and more.\nEnd\n")


def test_parts_that_are_text_of_another_kind_are_read(tmp_path):
    """They were named as attached files: the reasons of failed deliveries, patches, invitations."""
    kinds = ("text/plain", "text/x-patch", "text/calendar", "text/rfc822-headers")
    parts = [f"Content-Type: {kind}\n\nSay {kind[5:]}" for kind in kinds]
    parts.append("Content-Type: message/delivery-status\n\nReporting-MTA: x\n\nStatus: 5.1.1\n")
    parts.append("Content-Type: text/x-patch\nContent-Disposition: attachment; filename=a\n\nNo")
    body = "".join(f"--b\n{part}\n" for part in parts) + "--b--\n"
    document = read(tmp_path, mail(body, "Content-Type: multipart/mixed; boundary=b"))
    for said in (*(f"Say {kind[5:]}" for kind in kinds), "Reporting-MTA: x", "Status: 5.1.1"):
        assert document.text.count(said) == 1
    assert remarks(document) == {"attached files": ("warning", 1)}


def test_an_encrypted_passage_is_a_loss(tmp_path):
    sealed = "-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n"
    document = read(tmp_path, mail("Hello\n" + sealed, "Content-Type: text/plain"))
    assert remarks(document) == {"encrypted": ("loss", 1)}
