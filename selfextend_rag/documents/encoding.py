"""What files say: from bytes to text, or a clear refusal; never with replacement characters."""

from __future__ import annotations

import codecs
import re
import unicodedata

from charset_normalizer import from_bytes

from selfextend_rag.documents.content import Content, Remark
from selfextend_rag.errors import DocumentError, UnsupportedDocument

# Longest first: the UTF-32 mark starts with the UTF-16 one.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# What a guess may answer: the encodings of real files, without the many look-alikes.
_CANDIDATES = [
    *("cp1252", "cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("cp1257", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
]

# Declarations that mean a superset of what they say (as web browsers take them).
_SUPERSETS = {
    **{"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254"},
    **{"shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949"},
}

_CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
_CONTROL_SHARE = 0.01
_CP1252_ONLY = re.compile(rb"[\x80-\x9f]")


def decode(
    data: bytes, name: str, *, given: str | None = None, declared: str | None = None
) -> Content:
    """Return the text of these bytes, the encoding they were in, and what said so.

    In this order: an encoding that the caller gave, a byte order mark, UTF-16 without a mark,
    UTF-8, an encoding that the file itself declares (ignored where it can't be right), and a guess.

    Raises:
        DocumentError: the bytes are no text, or damaged, or not in the encoding given.
    """
    text: str | None
    if given is not None:
        return _content(_decode_given(data, name, given), given, "given")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            marked = _decode_marked(data[len(mark) :], name, encoding)
            return _checked(name, marked, encoding, "byte order mark")
    if b"\0" in data:
        return _decode_unmarked_utf16(data, name)
    if b"\x1b$" in data and (text := _try(data, "iso2022_jp")) is not None:
        return _content(text, "iso2022_jp", "content")
    if (text := _try(data, "utf-8")) is not None:
        return _checked(name, text, "utf-8", "content")
    if declared and (text := _try(data, declared)) is not None:
        return _checked(name, text, declared.lower(), "declaration")
    _refuse_damaged_utf8(data, name)
    return _guess(data, name)


def _content(text: str, encoding: str, encoding_from: str) -> Content:
    remarks: tuple[Remark, ...] = ()
    if encoding_from == "guess":
        says = f"not UTF-8; read as {encoding}, which is a guess: pass encoding= to choose"
        remarks = (Remark("guessed encoding", says, "warning"),)
    return Content(text, "", {"encoding": encoding, "encoding_from": encoding_from}, remarks)


def _checked(name: str, text: str, encoding: str, encoding_from: str) -> Content:
    controls = len(_CONTROL.findall(text))
    if "\0" in text or controls > _CONTROL_SHARE * len(text):
        raise _binary(name, f"{controls} of its {len(text)} characters are control codes")
    return _content(text, encoding, encoding_from)


def _decode_given(data: bytes, name: str, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except (LookupError, ValueError) as error:
        said = f"can't be read as {encoding!r} ({error})"  # codecs such as punycode say no more
        if isinstance(error, LookupError):
            said = f"can't be read as {encoding!r}, which is no encoding that Python knows"
        elif isinstance(error, UnicodeDecodeError):
            where = f"{error.reason} at byte {error.start}"
            said = f"is not in the encoding {encoding!r} that was given: {where}"
        raise DocumentError(f"{name} {said}; leave it out to have the encoding detected") from error


def _decode_marked(data: bytes, name: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name} starts with the byte order mark of {encoding} but is damaged at byte "
            f"{error.start} ({error.reason}); save it again, or pass encoding= to choose another"
        ) from error


def _decode_unmarked_utf16(data: bytes, name: str) -> Content:
    # Text has zero bytes only as the upper halves of UTF-16 code units, so all on one side.
    even, odd = data[::2], data[1::2]
    for encoding, lower, upper in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if b"\0" in lower or b"\0" not in upper:
            continue
        text = _try(data, encoding)
        if text is not None and all(unicodedata.category(c) not in ("Cn", "Co") for c in text):
            return _checked(name, text, encoding, "content")
    raise _binary(name, "it holds zero bytes")


def _try(data: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        return data.decode(_SUPERSETS.get(name, name))
    except (LookupError, UnicodeDecodeError):
        return None


def _refuse_damaged_utf8(data: bytes, name: str) -> None:
    """Refuse text that is UTF-8 but for some places; a guess would make all of it wrong."""
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if damaged > sum(c > "\x7f" for c in text) - damaged:
        return
    first = len(text[: text.index("\ufffd")].encode())
    raise DocumentError(
        f"{name} is UTF-8 text with {damaged} damaged place(s), the first at byte {first}; repair "
        "or save it again as UTF-8, or pass encoding= to choose another encoding"
    )


def _guess(data: bytes, name: str) -> Content:
    if len(_CONTROL.findall(data.decode("latin-1"))) > _CONTROL_SHARE * len(data):
        raise _binary(name, "many of its bytes are control codes")
    western = _try(data, "cp1252")
    encoding = _best_candidate(data)
    if encoding is not None and (text := _try(data, encoding)) not in (None, western):
        return _checked(name, text, encoding, "guess")
    mostly_ascii = sum(byte > 0x7F for byte in data) <= 0.1 * len(data)
    if western is None or (encoding is None and not mostly_ascii):
        raise _binary(name, "it is in no encoding that could be recognised")
    encoding = "cp1252" if _CP1252_ONLY.search(data) else "latin-1"
    return _checked(name, western, encoding, "guess")


def _best_candidate(data: bytes) -> str | None:
    matches = from_bytes(data, cp_isolation=_CANDIDATES)
    best = matches.best()
    if best is None:
        return None
    # Ties come sorted by name, cp1250 first; the western code page is far more common.
    western = next((match for match in matches if match.encoding == "cp1252"), best)
    as_good = western.chaos <= best.chaos + 0.02 and western.coherence >= best.coherence - 0.03
    return western.encoding if as_good else best.encoding


def _binary(name: str, finding: str) -> UnsupportedDocument:
    return UnsupportedDocument(
        f"{name} is not a text file ({finding}); give a text, Markdown, HTML or PDF file, or pass "
        "encoding= if it is text in an unusual encoding"
    )
