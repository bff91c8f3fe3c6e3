"""What files say: from bytes to text, or a clear refusal; never with replacement characters."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import chardet
import webencodings

from selfextend_rag.documents.content import Content, Remark
from selfextend_rag.errors import DocumentError, UnsupportedDocument

_MARKS = {  # longest first: the UTF-32 mark starts with the UTF-16 one
    **{codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be"},
    **{
        codecs.BOM_UTF8: "utf-8",
        codecs.BOM_UTF16_LE: "utf-16-le",
        codecs.BOM_UTF16_BE: "utf-16-be",
    },
}
_ESCAPED = ("iso2022_kr", "iso2022_jp_ext", "iso2022_jp_2004", "iso2022_jp_2")
# What a guess may answer: the encodings of real files, without their rare look-alikes.
_WIDE = ("cp932", "shift_jis_2004", "euc_jis_2004", "gb18030", "big5hkscs", "cp949", "johab")
_GUESSES = [
    *("cp1252", "iso8859-1", "iso8859-15", "mac-roman", "cp850", "cp437", "cp1254", "iso8859-9"),
    *("cp857", "cp1250", "iso8859-2", "iso8859-16", "mac-latin2", "cp852", "cp1257", "iso8859-13"),
    *("cp1258", "cp1251", "koi8-r", "koi8-u", "iso8859-5", "cp866", "cp1125", "mac-cyrillic"),
    *("cp1253", "iso8859-7", "cp737", "cp1255", "iso8859-8", "cp862", "cp1256", "iso8859-6"),
    *("cp874", *_WIDE),
]
_SUPERSETS = {  # as web browsers take them
    **{"iso8859-1": "cp1252", "iso8859-9": "cp1254", "gbk": "gb18030", "shift_jis_2004": "cp932"},
    "euc_jis_2004": "euc_jp",
}
_ASCII_COMPATIBLE = b" !\"#$%&'()*+,-./0123456789:;<=>?@A[]^_`a{|}~ \\n \\u0041 +AGE- ~{ xn--"
_DAMAGED = "it is damaged: save it again, or pass encoding= to choose another"
_SAMPLE = 1 << 14  # bytes that a judgement rests on
_CONTROL_SHARE = 0.01
_CONTROL_BYTES = bytes({*range(1, 8), *range(14, 27), *range(28, 32), 127})
_CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
_ANY_SCRIPT = re.compile("[\t-\r -~\xa0-\u024f\u1e00-\u1eff\u2000-\u2bff]")
_EAST_ASIAN = re.compile("[\u2e80-\u33ff\u4e00-\u9fff\uac00-\ud7af\uff00-\uffef]")
# Characters where no text has them: controls, letters in a word of another script or alone,
# capitals after small letters, and signs inside words.
_SMALL, _CAPITAL = (
    "".join(filter(kind, map(chr, range(0x250)))) for kind in (str.islower, str.isupper)
)
_ODD = re.compile(
    f"[\x80-\x84\x86-\x9f\ue000-\uf8ff]|(?<=[{_SMALL}{_CAPITAL}])[\u0370-\u0e7f]|"
    f"[\u0370-\u0e7f](?=[{_SMALL}{_CAPITAL}])|(?<!\\w)[\u0370-\u06ff](?!\\w)|(?<=[{_SMALL}])"
    f"[{_CAPITAL[26:]}]|(?<=[a-z])[\u2e80-\uffef](?=[a-z])|(?<=[^\\W\\d_])"
    "[\xa1-\xac\xae-\xb6\xb8-\xbf\xd7\xf7\u201a-\u2025\u2027-\u2bff](?=[^\\W\\d_])"
)
# What western text has beyond ASCII where it has no letters; those of other scripts come in rows.
_WESTERN_SIGNS = re.compile(
    "(?:[\0-\x7f]|[\xa0-\xbf\xd7\xf7\u2013-\u20ac\u2122](?![^\0-\x7f\u2018-\u201d\u2026]))*"
)


def decode(
    data: bytes, name: str, *, given: str | None = None, declared: str | None = None
) -> Content:
    """Return the text of these bytes, the encoding they were in, and what said so.

    In this order: an encoding that the caller gave, a byte order mark, escape sequences, UTF-16
    or UTF-32 without a mark, UTF-8, an encoding that the file itself declares (unless its text
    contradicts it), and a guess, which is remarked.

    Raises:
        DocumentError: the bytes are no text, or damaged, or not in the encoding given.
    """
    if given is not None:
        text = _strict(data, name, given, "leave it out to have the encoding detected")
        return Content(
            text.removeprefix("\ufeff"), "", {"encoding": given, "encoding_from": "given"}
        )
    for mark, codec in _MARKS.items():
        if data.startswith(mark):
            text = _strict(data[len(mark) :], name, codec, _DAMAGED)
            return _content(text, name, codec, "byte order mark")
    if re.search(rb"\x1b\$[@AB()]", data):
        codec = next((codec for codec in _ESCAPED if _try(data, codec)), _ESCAPED[-1])
        return _content(_strict(data, name, codec, _DAMAGED), name, codec)
    hanzi = _try(data, "hz") if b"~{" in data else None
    if hanzi and len(hanzi) < 0.7 * len(data):  # LaTeX has such signs too
        return _content(hanzi, name, "hz", "guess")
    if b"\0" in data or _controls(data) > _CONTROL_SHARE * len(data):
        return _unmarked(data, name)
    if (utf8 := _try(data, "utf-8")) is not None:
        return _content(utf8, name, "utf-8")
    _refuse_damaged_utf8(data, name)
    return _likeliest(data, name, declared)


def _content(text: str, name: str, codec: str, source: str = "content", why: str = "") -> Content:
    controls = len(_CONTROL.findall(text))
    if "\0" in text or controls > _CONTROL_SHARE * len(text):
        raise _binary(name, f"{controls} of its {len(text)} characters are control codes")
    says = f"read as {codec}, which is a guess{why}: pass encoding= to choose"
    guess = (Remark("guessed encoding", says, "warning"),) if source == "guess" else ()
    return Content(text, "", {"encoding": codec, "encoding_from": source}, guess)


def _binary(name: str, finding: str) -> UnsupportedDocument:
    return UnsupportedDocument(
        f"{name} is not a text file ({finding}); give a text, Markdown, HTML or PDF file, or pass "
        "encoding= if it is text in an unusual encoding"
    )


def _strict(data: bytes, name: str, codec: str, advice: str) -> str:
    try:
        return data.decode(codec)
    except (LookupError, ValueError) as error:
        raise DocumentError(f"{name} can't be read as {codec!r} ({error}); {advice}") from error


def _try(data: bytes, codec: str) -> str | None:
    with suppress(LookupError, ValueError):
        return data.decode(codec)
    return None


def _controls(data: bytes) -> int:
    return len(data) - len(data.translate(None, _CONTROL_BYTES))


def _unmarked(data: bytes, name: str) -> Content:
    """Return text in UTF-16 or UTF-32 without a mark; refuse bytes with a few zeros in them."""
    rest = data.replace(b"\0", b"")
    wide = ["utf-16-le", "utf-16-be"]
    if len(set(data[:_SAMPLE:2])) < len(set(data[1:_SAMPLE:2])):
        wide.reverse()  # the upper halves of the characters are the ones more alike
    is_text = _beyond_ascii(rest) < 0.1 * len(rest) or _try(rest, "utf-8") is not None
    few_controls = _controls(rest) <= _CONTROL_SHARE * len(rest)
    if len(rest) > 0.8 * len(data) and is_text and few_controls:
        wide = []
    for codec in ("utf-32-le", "utf-32-be", *wide):
        if (text := _try(data, codec)) and (script := _script(text[:_SAMPLE])):
            sure = codec not in wide or (len(text) > 8 and script not in ("EAST ASIAN", "CJK"))
            return _content(text, name, codec, "content" if sure else "guess")
    says = f"{_controls(data)} of its {len(data)} bytes are control codes"
    if len(rest) < len(data):
        says = f"it holds zero bytes, the first at byte {data.find(0)}"
    raise _binary(name, says)


def _script(text: str) -> str | None:
    """Return the script of a text; None where its characters are of several, as in no text."""
    found = Counter(
        "EAST ASIAN" if _EAST_ASIAN.match(c) else unicodedata.name(c, hex(ord(c))).split()[0]
        for c in _ANY_SCRIPT.sub("", text)
    )
    script, count = found.most_common(1)[0] if found else ("LATIN", 0)
    return script if found.total() - count <= 0.02 * len(text) else None


def _refuse_damaged_utf8(data: bytes, name: str) -> None:
    """Refuse text that is UTF-8 but for some places; a guess would make all of it wrong."""
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if 2 * damaged <= len(text) - len(text.encode("ascii", "ignore")):
        first = len(text[: text.index("\ufffd")].encode())
        raise DocumentError(
            f"{name} is UTF-8 text with {damaged} damaged place(s), the first at byte {first}; "
            "repair or save it again as UTF-8, or pass encoding= to choose another encoding"
        )


class _Reading(NamedTuple):
    codec: str
    text: str  # of the sample
    odd: float  # share of odd characters
    likely: float  # chardet's confidence


def _likeliest(data: bytes, name: str, declared: str | None) -> Content:
    """Return the text in the encoding declared, or in a guessed one where it can't be that."""
    sample = _sample(data)
    readings = _readings(sample) or [_Reading("cp1252", "", 1, 1)]
    best, why = readings[0], ""
    codec = _declared_codec(declared) if declared else None
    if (
        declared
        and codec
        and (text := _try(data, codec))
        and not re.search("[\x80-\x84\x86-\x9f]", text)
    ):
        sampled = sample.decode(codec, "ignore")
        likely = max((r.likely for r in readings if r.text == sampled), default=best.likely)
        if 2 * likely >= best.likely or _beyond_ascii(sample) <= 4:
            return _content(text, name, declared.lower(), "declaration")
        why = f", for its text is not in {declared}, which it declares"
    if best.codec not in _WIDE and (damaged := _damaged_codec(sample)):
        best = best._replace(codec=damaged, odd=0, text="")
    elif best.odd > 0.5:
        raise _binary(name, "it is in no encoding that could be recognised")
    why += next((f" (next: {r.codec})" for r in readings if r.text != best.text), "")
    for codec in (r.codec for r in readings if r.text == best.text):
        for fits in (_SUPERSETS.get(codec, codec), codec):
            if text := _try(data, fits):
                return _content(text, name, fits, "guess", why)
    return _content(_strict(data, name, best.codec, _DAMAGED), name, best.codec, "guess")


def _declared_codec(label: str) -> str | None:
    """Return the codec of a declared encoding; None for one that a file of bytes can't have."""
    known = webencodings.lookup(label)
    codec = known.codec_info.name if known else label
    compatible = _try(_ASCII_COMPATIBLE, codec) == _ASCII_COMPATIBLE.decode()
    return _SUPERSETS.get(codec, codec) if compatible else None


def _sample(data: bytes) -> bytes:
    """Return the first lines that hold more than ASCII, without tags."""
    lines = b"\n".join(line for line in data.split(b"\n") if not line.isascii())
    high = re.search(rb"[\x80-\xff]", lines)
    start = max(0, high.start() - 1000) if high else 0
    sample = lines[start : start + _SAMPLE]
    untagged = re.sub(rb"<[^<>]*>", b" ", sample)
    return sample if untagged.isascii() else untagged


def _beyond_ascii(data: bytes) -> int:
    return len(data) - len(data.decode("ascii", "ignore"))


def _readings(sample: bytes) -> list[_Reading]:
    """Return the sample in each encoding that it may be in, the likeliest first."""
    readings = []
    for answer in chardet.detect_all(
        sample, ignore_threshold=True, compat_names=False, include_encodings=_GUESSES
    ):
        codec = answer["encoding"] or "ascii"
        text = sample.decode(codec, "ignore")
        if high := len(text) - len(text.encode("ascii", "ignore")):
            odd = max(len(_ODD.findall(text)) / high, 0.1)
            readings.append(_Reading(codec, text, odd, answer["confidence"]))
    readings.sort(key=lambda reading: reading.odd)  # equally odd ones stay in chardet's order
    for western in [r for r in readings if r.codec == "cp1252" and r.odd <= readings[0].odd]:
        signs = _WESTERN_SIGNS.fullmatch(western.text) and not _ODD.search(western.text)
        few = _beyond_ascii(sample) <= 4 and 1.4 * western.likely >= readings[0].likely
        if signs or few:
            readings.insert(0, western)  # by far the most common
    return readings


def _damaged_codec(sample: bytes) -> str | None:
    """Return the encoding of several bytes per character that all but a few bytes are in."""
    for codec in _WIDE:
        kept = sample.decode(codec, "ignore").encode(codec, "ignore")
        few = 0 < 10 * (len(sample) - len(kept)) <= _beyond_ascii(sample)
        if few and (readings := _readings(kept)) and readings[0].codec == codec:
            return codec
    return None
