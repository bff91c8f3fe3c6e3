"""Mail: messages with the headers that people read, mailboxes, and web pages saved as mail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message

from selfextend_rag.documents.content import (
    Content,
    Location,
    Remark,
    Severity,
    remarked,
)
from selfextend_rag.documents.encoding import decode, normalize_newlines
from selfextend_rag.documents.html import declared_encoding, read_html
from selfextend_rag.errors import DocumentError

_HEADERS = ("From", "To", "Cc", "Bcc", "Date", "Subject")
_LIKE_ASCII = ("utf-7", "hz-gb-2312", "hz")  # what is in them, the declaration alone says
_LONGEST_HEADER = 1 << 18
# What programs show as it is, or nearly; not formats of text with codes in them, nor style sheets.
_AS_TEXT = "multipart/.*|text/(?:plain|markdown|csv|calendar|x-diff|x-patch|rfc822-headers|x-log)"
_HTML = ("text/html", "application/xhtml+xml")
_ENCRYPTED = ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime")
_MESSAGE_START = re.compile(
    rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]*\d\d:\d\d[^\n]*\n(?=[!-9;-~]+:)"
)
# Files written into a text, as programs did before MIME: uuencode, and its form in base64.
_FILES_IN_TEXT = re.compile(
    r"^begin [0-7]{3,4} (?P<uu>[^\n]+)\n(?P<lines>(?:[!-`][ -`]{1,85}\n)+)(?:[` ]?\n)?end *$"
    r"|^begin-base64 [0-7]{3,4} (?P<base64>[^\n]+)\n(?P<coded>(?:[\w+/=]{1,76}\n)*?)==== *$",
    re.MULTILINE,
)
_ADDRESS = re.compile(r"\b(?:https?://|www\.|mailto:)\S+")


def read_mail(data: bytes, name: str) -> Content:
    """Return what a message says, or the messages of a mailbox, or a page that a browser saved.

    Of the forms of a text (plain, HTML) the one with the most words is read, the last of equals;
    words that only the others have are remarked. Messages in a message are read, and other
    attachments are named.

    Raises:
        DocumentError: parts are nested too deeply, or HTML is.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if counted := re.match(rb"(\d{1,12}) *\r?\n", data):  # Apple Mail's; its notes come after
        data = data[counted.end() :][: int(counted[1])]
    spans = [found.span() for found in _MESSAGE_START.finditer(data)] or [(0, 0)]
    mail, text, locations = Mail(name), "", []
    for number, (_, start) in enumerate(spans, 1):
        source = data[start : spans[number][0] if number < len(spans) else len(data)]
        if len(spans) > 1:
            source = re.sub(rb"(?m)^>(>*From )", rb"\1", source)
        try:
            said = mail.message(message_from_bytes(source))
        except RecursionError as error:
            says = "has parts in parts, nested too deeply; save them as files and read those"
            raise DocumentError(f"{name} {says}") from error
        if said:
            locations.append(Location(len(text), f"message {number}"))
            text += f"{said}\n\n"
    return mail.content(text, locations if len(spans) > 1 else [])


class Mail:
    """Reads messages, and collects what their text does not say.

    Args:
        name: the file's name, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.titles: list[str] = []
        self.files: list[str] = []
        self.remarks: list[Remark] = []

    def content(self, text: str, locations: Sequence[Location] = ()) -> Content:
        """Return what was read, with the remarks."""
        title = self.titles[0] if self.titles and not locations else ""
        if self.files:
            shown = ", ".join(self.files[:10]) + (", ..." if len(self.files) > 10 else "")
            says, count = "attached file{s} {are} not read", len(self.files)
            self.remark("warning", "attached files", says, count, f": {shown}")
        metadata = {"messages": max(1, len(locations)), "attachments": self.files}
        remarks = tuple(dict.fromkeys(self.remarks))
        return Content(text.rstrip(), title, metadata, remarks, tuple(locations))

    def message(self, message: Message) -> str:
        """Return the headers that people read, and the text; of a saved page the text alone."""
        headers = {name: self._header(message, name) for name in _HEADERS}
        shown = "".join(f"{name}: {value}\n" for name, value in headers.items() if value)
        if re.match(r"\W*saved\b", headers["From"], re.IGNORECASE):  # "<Saved by Blink>"
            shown = ""
        self.titles.append(headers["Subject"])
        text = self._part(message)
        if not text:
            self.remark("warning", "no text", "message has headers, and no text")
        defects = {type(x).__name__ for part in message.walk() for x in part.defects}
        if defects:
            names = ", ".join(sorted(name.removesuffix("Defect") for name in defects))
            says, more = (
                "departure{s} from the format of mail; parts may be missing or garbled",
                names,
            )
            self.remark("warning", "departures from the format", says, len(defects), f": {more}")
        return normalize_newlines(f"{shown}\n{text}").strip()

    def remark(
        self, severity: Severity, kind: str, says: str, count: int = 1, more: str = ""
    ) -> None:
        """Add a remark on so many things."""
        self.remarks.append(remarked(severity, kind, count, says, more))

    def _header(self, message: Message, name: str) -> str:
        """Return the headers of a name, as their encoded words mean."""
        raw = (str(value) for key, value in message.raw_items() if key.lower() == name.lower())
        return ", ".join(map(self._decoded, raw))

    def _decoded(self, header: str) -> str:
        header = self.text(header.encode("utf-8", "surrogateescape"))
        if len(header) > _LONGEST_HEADER:  # decoding takes the square of it
            self.remark("warning", "long header", "header is too long to decode, and as written")
            return " ".join(header.split())
        try:
            words = decode_header(header)
        except HeaderParseError:  # damaged base64
            words = [(header, None)]
        text = ""
        for word, charset in words:
            if isinstance(word, bytes):
                plain = charset is None
                word = word.decode("raw-unicode-escape") if plain else self.text(word, charset)
            text += word
        return " ".join(text.split())

    def text(self, data: bytes, charset: str | None = None) -> str:
        """Return text in the character set that the mail names, or that is found out."""
        given = charset if charset in _LIKE_ASCII else None
        try:
            content = decode(data, self.name, given=given, declared=charset)
        except DocumentError as error:
            try:
                text = data.decode(charset or "utf-8", "replace")
            except (LookupError, ValueError):  # no name of an encoding
                text = data.decode("ascii", "replace")
            says, count = "character{s} or more {are} garbled", max(1, text.count("\ufffd"))
            self.remark("loss", "unreadable characters", says, count, f", or U+FFFD: {error}")
            return text
        self.remarks += content.remarks
        return content.text

    def _part(self, part: Message) -> str:
        """Return the text of a part; what it has besides is remarked."""
        kind, parts = part.get_content_type(), _parts(part)
        if kind in _ENCRYPTED:
            says = "text is encrypted or in a sealed envelope; save it from the mail program"
            self.remark("loss", "encrypted", says)
        elif kind.endswith("-signature"):
            self.remark("note", "signatures", "signature was not checked")
        elif kind == "message/rfc822" and parts and parts[0].keys():
            return f"Attached message:\n\n{self.message(parts[0])}"
        elif kind == "multipart/alternative" and parts:
            return self._best(parts)
        elif kind == "multipart/related" and parts:
            return self._root(parts, part.get_param("start"))
        elif kind.startswith("multipart/") and parts:
            return "\n\n".join(filter(None, map(self._part, parts)))
        elif part.get_content_disposition() == "attachment":
            self._attached(part)
        elif kind in _HTML:
            return self._html(part)
        elif kind == "message/delivery-status":
            return "\n\n".join(str(x).strip() for x in parts)
        elif re.fullmatch(_AS_TEXT, kind):
            text = normalize_newlines(self.text(_bytes(part), part.get_content_charset())).strip()
            if "-----BEGIN PGP MESSAGE-----" in text:
                self.remark("loss", "encrypted", "passage is encrypted, and in the text as such")
            text = _FILES_IN_TEXT.sub(self._in_text, text).strip()
            return _unwrapped(text, part) if part.get_param("format") == "flowed" else text
        else:
            self._attached(part)
        return ""

    def _best(self, parts: list[Message]) -> str:
        """Return the text of the form that has the most words."""
        best, said, words, others = Mail(self.name), "", dict[str, None](), dict[str, None]()
        for part in parts:
            form = Mail(self.name)
            text = form._part(part)
            found = dict.fromkeys(re.findall(r"\w+", _ADDRESS.sub(" ", text.lower())))
            if len(found) >= len(words):
                best, said, words, found = form, text, found, words
            others |= found
            self.files += form.files
        if missing := [word for word in others if word not in words]:
            says, more = "word{s} {are} in another form of the text alone", ", ".join(missing[:10])
            self.remark("warning", "other forms", says, len(missing), f": {more}")
        self.remarks += best.remarks
        return said

    def _root(self, parts: list[Message], start: object) -> str:
        """Return the text of the part that shows the others, and of those that it can't show."""
        texts = [x for x in parts if x.get_content_type() in _HTML or x.is_multipart()]
        root = next((x for x in parts if start and x["Content-ID"] == start), [*texts, *parts][0])
        shown = [x for x in parts if x["Content-Location"] or x.get_content_maintype() == "image"]
        if frames := sum(x in texts for x in shown if x is not root):
            self.remark("warning", "frames", "frame{s} of the page {are} left out", frames)
        if resources := sum(x not in texts for x in shown if x is not root):
            says = "file{s} that the text shows (pictures, styles) {are} left out"
            self.remark("note", "resources", says, resources)
        said = map(self._part, (root, *(x for x in parts if x is not root and x not in shown)))
        return "\n\n".join(filter(None, said))

    def _html(self, part: Message) -> str:
        data = _bytes(part)
        markup = self.text(data, part.get_content_charset() or declared_encoding(data))
        try:
            page = read_html(markup, self.name)
        except DocumentError as error:  # pictures alone, for instance
            self.remark("loss", "unread HTML", "text could not be read", 1, f": {error}")
            return ""
        self.remarks += page.remarks
        if self.titles:
            self.titles[-1] = self.titles[-1] or page.title
        return page.text

    def _in_text(self, found: re.Match[str]) -> str:
        """Note a file that is written into a text, and return what the text has in its place."""
        if found["uu"]:
            size = sum(ord(line[0]) - 32 & 63 for line in found["lines"].splitlines())
        else:
            size = len(re.sub(r"[\n=]", "", found["coded"])) * 3 // 4
        name = (found["uu"] or found["base64"]).strip()
        self.files.append(f"{name} (written into the text, {size} bytes)")
        return ""

    def _attached(self, part: Message) -> None:
        name = self._decoded(part.get_filename() or "without a name")
        self.files.append(f"{name} ({part.get_content_type()}, {len(_bytes(part))} bytes)")


def _parts(part: Message) -> list[Message]:
    parts = part.get_payload() if part.is_multipart() else []
    return [x for x in parts if isinstance(x, Message)]


def _unwrapped(text: str, part: Message) -> str:
    """Return text with the lines joined that a program wrapped (RFC 3676), as in addresses."""
    space = "" if str(part.get_param("delsp")).lower() == "yes" else " "
    lines: list[str] = []
    for line in text.split("\n"):
        said, before = line.lstrip(">"), lines[-1] if lines else ""
        body = before.lstrip(">")
        quoted_alike = len(line) - len(said) == len(before) - len(body)
        if quoted_alike and said and body.endswith(" ") and body != "-- ":
            lines[-1] = before[:-1] + space + said.removeprefix(" ")
        else:
            lines.append(line)
    return "\n".join(lines)


def _bytes(part: Message) -> bytes:
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""
