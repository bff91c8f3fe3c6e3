"""What files say: from bytes to text, or a clear refusal; never with replacement characters."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from contextlib import suppress

import chardet
import webencodings

from selfextend_rag.documents.content import Content, Remark
from selfextend_rag.errors import DocumentError

_MARKED = ("utf-32-le", "utf-32-be", "utf-8", "utf-16-le", "utf-16-be")  # the longest mark first
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
_ASCII = (
    b" !\"#$%&'()*+,-./09:;<=>?@AZ[]^_`az{|}~ \\n \\u0041 +AGE- ~{ xn--"  # none to HZ, UTF-7, ...
)
_DAMAGED = "it is damaged: save it again, or pass encoding= to choose another"
_SAMPLE = 1 << 14  # bytes that a judgement rests on
_CONTROLS = bytes({*range(1, 8), *range(14, 27), *range(28, 32), 127})
_CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
_C1 = re.compile("[\x80-\x84\x86-\x9f]")
_ANY_SCRIPT = re.compile("[\t-\r -~\xa0-\u024f\u1e00-\u1eff\u2000-\u2bff]")
_EAST_ASIAN = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]")
# Characters where no text has them: controls, letters in a word of another script or alone,
# capitals after small letters, and signs inside words.
_ODD = re.compile(
    "[\x80-\x84\x86-\x9f\ue000-\uf8ff]|[A-Za-z\xc0-\u024f][\u0370-\u0e7f]|(?<=[a-z\xdf-\xff])"
    "[\xc0-\xde\u0104\u0141]|[\u0370-\u0e7f](?=[A-Za-z\xc0-\u024f])|(?<!\\w)[\u0370-\u06ff](?!\\w)|"
    "(?<=[^\\W\\d_])[\xa1-\xac\xae-\xb6\xb8-\xbf\xd7\xf7\u201a-\u2025\u2027-\u2bff](?=[^\\W\\d_])"
)
# What western text without accents has beyond ASCII; letters of other scripts come in rows.
_SIGNS = re.compile(
    "(?:[\0-\x7f]|[\xa0-\xbf\xd7\xf7\u2013-\u20ac\u2122](?![^\0-\x7f\u2018-\u2026]))*"
)
_Reading = tuple[str, str, float, float]  # codec, the sample's text, share of odd, confidence


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
        metadata = {"encoding": given, "encoding_from": "given"}
        return Content(text.lstrip("\ufeff"), "", metadata)
    for codec in _MARKED:
        if data.startswith(mark := "\ufeff".encode(codec)):
            text = _strict(data[len(mark) :], name, codec, _DAMAGED)
            return _content(text.lstrip("\ufeff"), name, codec, "byte order mark")
    if re.search(rb"\x1b\$[@AB()]", data):
        codec = next((codec for codec in _ESCAPED if _try(data, codec)), _ESCAPED[-1])
        return _content(_strict(data, name, codec, _DAMAGED), name, codec)
    hanzi = _try(data, "hz") if b"~{" in data else None
    if hanzi and len(hanzi) < 0.7 * len(data):  # LaTeX has such signs too
        return _content(hanzi, name, "hz", "guess")
    if b"\0" in data or _controls(data) > 0.01:
        return _unmarked(data, name)
    if (utf8 := _try(data, "utf-8")) is not None:
        return _content(utf8, name, "utf-8")
    return _likeliest(data, name, declared)


def normalize_newlines(text: str) -> str:
    """Return the text with every line end, ``\\r\\n`` or ``\\r``, made ``\\n``."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(text: str, name: str, codec: str, source: str = "content", why: str = "") -> Content:
    controls = len(_CONTROL.findall(text))
    if "\0" in text or controls > 0.01 * len(text):
        raise _binary(name, f"{controls} of its {len(text)} characters are control codes")
    says = f"read as {codec}, which is a guess{why}: pass encoding= to choose"
    guess = (Remark("guessed encoding", says, "warning"),) if source == "guess" else ()
    return Content(text, "", {"encoding": codec, "encoding_from": source}, guess)


def _binary(name: str, finding: str) -> DocumentError:
    advice = "pass encoding= if it is text in an unusual encoding"
    return DocumentError(f"{name} is not a text file ({finding}); {advice}")


def _strict(data: bytes, name: str, codec: str, advice: str) -> str:
    try:
        return data.decode(codec)
    except (LookupError, ValueError) as error:
        raise DocumentError(f"{name} can't be read as {codec!r} ({error}); {advice}") from error


def _try(data: bytes, codec: str) -> str | None:
    with suppress(LookupError, ValueError):
        return data.decode(codec)
    return None


def _controls(data: bytes) -> float:
    return 1 - len(data.translate(None, _CONTROLS)) / max(len(data), 1)


def _high(data: bytes) -> int:
    return len(data) - len(data.decode("ascii", "ignore"))


def _unmarked(data: bytes, name: str) -> Content:
    """Return text in UTF-16 or UTF-32 without a mark; refuse bytes with a few zeros in them."""
    rest = data.replace(b"\0", b"")
    wide = ["utf-16-le", "utf-16-be"]
    if len(set(data[:_SAMPLE:2])) < len(set(data[1:_SAMPLE:2])):
        wide.reverse()  # the upper halves of the characters are the ones more alike
    if len(rest) > 0.8 * len(data) and _controls(rest) <= 0.01:
        wide = wide if _high(rest) > 0.1 * len(rest) and _try(rest, "utf-8") is None else []
    for codec in ("utf-32-le", "utf-32-be", *wide):
        if (text := _try(data, codec)) and (script := _script(text[:_SAMPLE])):
            sure = codec not in wide or (len(text) > 8 and script not in ("EAST ASIAN", "CJK"))
            return _content(text, name, codec, "content" if sure else "guess")
    controls = f"{round(_controls(data) * len(data))} of its {len(data)} bytes are control codes"
    zeros = f"it holds zero bytes, the first at byte {data.find(0)}"
    raise _binary(name, zeros if b"\0" in data else controls)


def _script(text: str) -> str | None:
    """Return the script of a text; None where its characters are of several, as in no text."""
    found = Counter(
        "EAST ASIAN" if _EAST_ASIAN.match(c) else unicodedata.name(c, hex(ord(c))).split()[0]
        for c in _ANY_SCRIPT.sub("", text)
    )
    script, count = found.most_common(1)[0] if found else ("LATIN", 0)
    return script if found.total() - count <= 0.02 * len(text) else None


def _likeliest(data: bytes, name: str, declared: str | None) -> Content:
    """Return the text in the encoding declared, or in a guessed one where it can't be that."""
    lines = b"\n".join(line for line in data.split(b"\n") if not line.isascii())
    sample = re.sub(rb"\A[\0-\x7f]*(?=[\0-\x7f]{1000})", b"", lines)[:_SAMPLE]
    untagged = re.sub(rb"<[^<>]*>", b" ", sample)
    sample = sample if untagged.isascii() else untagged
    readings = _readings(sample) or [("cp1252", "", 1.0, 1.0)]
    best, best_text, odd, likely = readings[0]
    if damaged := next((c for c in ("utf-8", *_WIDE) if _is_damaged(sample, c, best)), None):
        return _content(_strict(data, name, damaged, _DAMAGED), name, damaged, "guess")
    why, known = "", webencodings.lookup(declared or "")
    codec = known.codec_info.name if known else declared or ""
    codec = _SUPERSETS.get(codec, codec)
    possible = _try(_ASCII, codec) == _ASCII.decode()  # of others not even the data is tried
    text = _try(data, codec) if possible else None
    if declared and text and not _C1.search(text):
        sampled = sample.decode(codec, "ignore")
        rated = max((r[3] for r in readings if r[1] == sampled), default=likely)
        if 2 * rated >= likely or _high(sample) <= 4:
            return _content(text, name, declared.lower(), "declaration")
        why = f", for its text is not in {declared}, which it declares"
    if odd > 0.5:
        raise _binary(name, "it is in no encoding that could be recognised")
    why += next((f" (next: {r[0]})" for r in readings if r[1] != best_text), "")
    for codec in (r[0] for r in readings if r[1] == best_text):
        for fits in (_SUPERSETS.get(codec, codec), codec):
            if text := _try(data, fits):
                return _content(text, name, fits, "guess", why)
    return _content(_strict(data, name, best, _DAMAGED), name, best, "guess")


def _readings(sample: bytes) -> list[_Reading]:
    """Return the sample in each encoding that it may be in, the likeliest first."""
    readings: list[_Reading] = []
    for answer in chardet.detect_all(
        sample, ignore_threshold=True, compat_names=False, include_encodings=_GUESSES
    ):
        codec = answer["encoding"] or "ascii"
        text = sample.decode(codec, "ignore")
        if beyond := len(text) - len(text.encode("ascii", "ignore")):
            odd = max(len(_ODD.findall(text)) / beyond, 0.1)
            readings.append((codec, text, odd, answer["confidence"]))
    readings.sort(key=lambda reading: reading[2])  # equally odd ones stay in chardet's order
    for western in [r for r in readings if r[0] == "cp1252" and r[2] <= readings[0][2]]:
        signs = _SIGNS.fullmatch(western[1]) and not _ODD.search(western[1])
        if signs or (_high(sample) <= 4 and 1.4 * western[3] >= readings[0][3]):
            readings.insert(0, western)  # by far the most common
    return readings


def _is_damaged(sample: bytes, codec: str, best: str) -> bool:
    """Return whether all but a few bytes are text in an encoding of several per character."""
    kept = sample.decode(codec, "ignore").encode(codec, "ignore")
    lost, high = len(sample) - len(kept), _high(sample)
    if codec == "utf-8":
        return 3 * lost <= high
    few = best not in _WIDE and 0 < 10 * lost <= high
    return few and [r[0] for r in _readings(kept)[:1]] == [codec]
