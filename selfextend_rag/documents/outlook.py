"""Messages of Outlook (.msg), put together as the mail that they are."""

from __future__ import annotations

import io
import struct
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.utils import format_datetime
from typing import Any

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.mail import Mail
from selfextend_rag.errors import DocumentError

_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error)


def read_msg(data: bytes, name: str) -> Content:
    """Return what a message of Outlook says, as `read_mail` does of other mail.

    Raises:
        DocumentError: it is damaged, or olefile is not installed.
    """
    try:
        import olefile
    except ImportError as error:
        says = 'needs olefile to be read; pip install "selfextend-rag[office]"'
        raise DocumentError(f"{name} {says}") from error
    mail = Mail(name)
    try:
        with olefile.OleFileIO(io.BytesIO(data)) as file:
            message = _Storage(file, (), 32, mail).message()
            defects = {str(issue) for _, issue in file.parsing_issues}
        if defects:
            says = "departure{s} from the format"
            mail.remark("warning", "departures from the format", says, len(defects), f": {defects}")
        return mail.content(mail.message(message))
    except (*_DAMAGE, RecursionError) as error:
        says = f"is a damaged Outlook message ({error}); save it again, or as .eml, and read that"
        raise DocumentError(f"{name} {says}") from error


class _Storage:
    """A message, recipient or attachment: the properties in one folder of the file."""

    def __init__(self, file: Any, path: tuple[str, ...], header: int, mail: Mail) -> None:
        self._file, self._path, self._mail = file, path, mail
        data = self._stream("__properties_version1.0")[header:]
        rows = struct.iter_unpack("<IIQ", data[: len(data) // 16 * 16])
        self._numbers = {tag >> 16: value for tag, _, value in rows}

    def _stream(self, name: str) -> bytes:
        path = [*self._path, name]
        return bytes(self._file.openstream(path).read()) if self._file.exists(path) else b""

    def _text(self, tag: int) -> str:
        if wide := self._stream(f"__substg1.0_{tag:04X}001F"):
            return wide.decode("utf-16-le", "replace")
        narrow = self._stream(f"__substg1.0_{tag:04X}001E")
        return self._mail.text(narrow, f"cp{self._numbers.get(0x3FFD, 0)}") if narrow else ""

    def _storages(self, start: str, header: int) -> list[_Storage]:
        paths = sorted(map(tuple, self._file.listdir(streams=False, storages=True)))
        below = (path for path in paths if path[:-1] == self._path and path[-1].startswith(start))
        return [_Storage(self._file, path, header, self._mail) for path in below]

    def message(self) -> MIMEMultipart:
        """Return the message with its headers, the forms of its text, and its attachments."""
        message, forms = MIMEMultipart(), MIMEMultipart("alternative")
        message["From"] = _person(self._text(0x0C1A), self._text(0x5D01) or self._text(0x0C1F))
        for person in self._storages("__recip", 8):
            address = person._text(0x39FE) or person._text(0x3003)
            kind = {2: "Cc", 3: "Bcc"}.get(person._numbers.get(0x0C15, 1), "To")
            message[kind] = _person(person._text(0x3001), address)
        if sent := self._numbers.get(0x0039) or self._numbers.get(0x0E06):  # in 100 ns since 1601
            date = datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=sent // 10)
            message["Date"] = format_datetime(date)
        message["Subject"] = self._text(0x0037)
        _attach(forms, "text/plain", self._text(0x1000).encode())
        _attach(forms, "text/html", self._stream("__substg1.0_10130102"))
        if forms.get_payload():
            message.attach(forms)
        elif self._stream("__substg1.0_10090102"):
            self._mail.remark("loss", "unread Rich Text", "text in compressed RTF is not read")
        if (kind := self._text(0x001A)) and not kind.startswith("IPM.Note"):
            self._mail.remark("warning", "no letter", "item with fields not read", 1, f": {kind}")
        for file in self._storages("__attach", 8):
            if inner := file._storages("__substg1.0_3701000D", 24):
                message.attach(MIMEMessage(inner[0].message()))
            else:
                name = file._text(0x3707) or file._text(0x3704) or file._text(0x3001)
                data = file._stream("__substg1.0_37010102")
                _attach(message, file._text(0x370E), data, name)
        return message


def _person(name: str, address: str) -> str:
    """Return a name with its address, unless that is of an Exchange server's own form."""
    return f"{name} <{address}>" if "@" in address and address != name else name or address


def _attach(to: MIMEMultipart, kind: str, data: bytes, name: str | None = None) -> None:
    """Add a part: a form of the text where there is any, or a file of this name."""
    if name is None and not data.strip():
        return
    main, _, sub = (kind if kind.count("/") == 1 else "application/octet-stream").partition("/")
    part = MIMEBase(main, sub)
    part.set_payload(b64encode(data).decode())
    part["Content-Transfer-Encoding"] = "base64"
    if name is not None:
        part.add_header("Content-Disposition", "attachment", filename=name)
    to.attach(part)
