"""What pdfium reads on the pages of a PDF, and what a look at the file's own bytes finds.

``pdf.py`` runs this file as a program that reads a PDF from its standard input and writes JSON; so
it imports nothing of the package, but where scans are recognised. Claims about pdfium were read in
its ``cpdf_textpage.cpp``.
"""

from __future__ import annotations

import base64
import ctypes
import faulthandler
import io
import json
import math
import re
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, pairwise, repeat
from typing import Any

if __name__ == "__main__":  # started without a search path, by the process that has one
    _GIVEN = json.loads(sys.argv[1])
    sys.path[:] = _GIVEN.pop("path")

import pypdfium2 as pdfium
import pypdfium2.raw as raw

_DELETED = "\0"
_PICTURED = 0.05  # of a page's area: smaller pictures, as of letterheads, are not remarked on
_SCANNED, _FEW_LETTERS = 0.5, 200  # of a page that is a picture; on it, besides that
_NO_LETTER = re.compile("[\x01-\x09\x0b-\x1f\x7f-\x9f\ue000-\uf8ff\ufdd0-\ufdef\ufff0-\uffff]")
# The marks of lists in Microsoft's symbol fonts, the hyphen that U+00AD shows, and white space.
_MARKS = {0xF0B7: "•", 0xF0A7: "▪", 0xF0D8: "➢", 0xF0FC: "✓", 0xAD: "-", 9: " ", 13: " ", 0: None}
# Three letters or two words in a row twice, as where text is drawn twice to look bold.
_DOUBLED = re.compile(r"(?:([^\W\d_])\1){3}|\b(\w{2,}) \2 (\w+) \3\b")
_SPACED = re.compile(r"(?<!\S)(?:\S{1,2} ){4,}\S{1,2}(?!\S)")  # S e r i a l
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
# Kinds of Unicode's directions: letters that are read to the right and left, numbers, signs that
# separate them or are a part of them, and the minus, which does so in Hebrew alone.
_KINDS = {"L": "l", "R": "r", "AL": "r", "EN": "n", "AN": "n", "CS": "s", "ET": "e", "ES": "m"}
# What is read to the right in a line that is read to the left: words with numbers after them, and
# numbers.
_LEFT_TO_RIGHT = re.compile("l(?:[ln]|[^lnr]+(?=[ln]))*|e*n(?:n|[sm](?=n))*e*|.")
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_DEFLATED = re.compile(rb"/Filter\s*\[?\s*(?:/ASCII85Decode\s*)?/FlateDecode")
_NOT_TEXT = re.compile(  # streams whose damage costs no text: fonts, colours, pictures, metadata
    rb"/Length1|/Subtype\s*/(?:Image|Type1C|CIDFontType0C|OpenType|XML)|/N \d|/FunctionType"
    rb"|/ShadingType|/PatternType|/Type\s*/(?:Metadata|EmbeddedFile|XRef|ObjStm)"
)


def read_pages(
    data: bytes,
    seconds: float = 0,
    scan: float | None = None,
    first: int = 0,
    plain: Sequence[int] = (),
) -> Iterator[dict[str, Any] | None]:
    """Yield what is known of a file, and each page's text, as JSON values; or an ``error``.

    Args:
        data: the file.
        seconds: end the process when a page takes longer; 0: no limit.
        scan: recognise text on pages without it, with this limit of seconds; None: don't.
        first: the page to begin with, counted from 0.
        plain: pages on which no text is to be recognised.
    """
    watch = faulthandler.dump_traceback_later if seconds else lambda *_, **__: None
    watch(seconds, exit=True)
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        locked = error.err_code == raw.FPDF_ERR_PASSWORD
        yield {"error": "password" if locked else "nothing in it can be found"}
        return
    count = raw.FPDFDoc_GetAttachmentCount(document)
    attached = [raw.FPDFDoc_GetAttachment(document, index) for index in range(count)]
    files = [_string(raw.FPDFAttachment_GetName, file) for file in attached]
    yield {
        **_file_facts(document),
        "count": len(document),
        "rebuilt": not raw.FPDF_DocumentHasValidCrossReferenceTable(document),
        "title": _string(raw.FPDF_GetMetaText, document, b"Title"),
        "xfa": document.get_formtype() in (raw.FORMTYPE_XFA_FULL, raw.FORMTYPE_XFA_FOREGROUND),
        "files": files,
    }
    document.init_forms()
    for index in range(first, len(document)):
        watch(seconds, exit=True)
        try:
            page = _read_page(document, index, files)
            # Where letters are lost, other words can't be relied on more than recognised ones; and
            # a few words over a picture of the whole page are a stamp or what a form was given.
            letters = len("".join(page["text"].split()))
            stamped = page.pop("pictured") >= _SCANNED and letters < _FEW_LETTERS
            needed = stamped or 10 * page["garbled"] >= letters
            if scan is not None and needed and index not in plain:
                watch(scan, exit=True)
                page |= _recognise(document, index, page["turned"])
            yield page
        except ImportError as error:
            yield {"error": "ocr", "missing": str(error)}
            return
        except pdfium.PdfiumError:
            yield None


def _read_page(document: pdfium.PdfDocument, index: int, files: list[str]) -> dict[str, Any]:
    page = document.get_page(index)
    notes, unread = _annotations(page, files)
    if raw.FPDFPage_GetAnnotCount(page) > 0:
        # Draws fields and notes into the page, which has to be loaded again to have them.
        before = raw.FPDFPage_CountObjects(page)
        raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
        page.close()
        page = document.get_page(index)
        _place_values(page, before)
    turned = page.get_rotation()
    raw.FPDFPage_SetRotation(page, 0)
    runs: dict[str, list[object]] = {"all": [], "unseen": [], "tall": [], "invisible": []}
    areas: list[float] = []
    _set_upright(_page_items(page), runs, areas)
    pictured = sum(areas) / max(math.prod(page.get_size()), 1.0)
    if 2 * len(runs["invisible"]) > len(runs["all"]):
        areas, pictured = [], 0.0  # what a program recognised in the picture is laid over it
    textpage = page.get_textpage()
    columns = [run for run in runs["tall"] if raw.FPDFTextObj_GetText(run, textpage, None, 0) > 4]
    if columns:  # more than one character: vertical writing
        for run in columns:
            raw.FPDFPageObj_Transform(run, 0, 1, -1, 0, 0, 0)
        textpage.close()
        textpage = page.get_textpage()
    text = _text(textpage, _inlaid(_page_items(page)))
    solid = "".join(text.split())  # what lacks an appearance, or has an old one, is added
    text = "\n".join([text, *(s for s in notes if "".join(s.split()) not in solid)]).strip()
    textpage.close()
    page.close()
    unseen = len(runs["unseen"])
    if 2 * unseen <= max(len(runs["all"]), 4):
        unseen = 0  # a space drawn alone has no size either
    garbled = text.count("\ufffd")
    facts = {"text": text, "unread": unread, "unseen": unseen, "garbled": garbled}
    # A page without text has a remark of its own.
    pictures = len(areas) if text and pictured >= _PICTURED else 0
    facts |= {"pictures": pictures, "pictured": pictured}
    return {**facts, "turned": turned, "blurred": 0, "scan": None}


def _recognise(document: pdfium.PdfDocument, index: int, turned: int) -> dict[str, Any]:
    from selfextend_rag.documents.scans import recognise, scale

    page = document.get_page(index)
    picture = page.render(scale=scale(*page.get_size()), rotation=turned).to_numpy()
    page.close()
    scan = recognise(picture)
    text, blurred = scan.pop("text"), scan.pop("unread")
    seen = {"text": text, "garbled": 0, "pictures": 0} if text else {}
    return {"scan": scan, "blurred": blurred, **seen}


def _annotations(page: pdfium.PdfPage, files: list[str]) -> tuple[list[str], int]:
    """Return what notes and text fields say, and how many more texts the page does not show."""
    notes, unread, form = [], 0, page.formenv
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        hidden = raw.FPDFAnnot_GetFlags(annotation) & raw.FPDF_ANNOT_FLAG_HIDDEN
        says = _string(raw.FPDFAnnot_GetStringValue, annotation, b"Contents")
        entry = raw.FPDFAnnot_GetFormFieldType(form, annotation) if form else -1
        if entry == raw.FPDF_FORMFIELD_TEXTFIELD:
            flags = raw.FPDFAnnot_GetFormFieldFlags(form, annotation)
            says = _string(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
            says = "" if flags & raw.FPDF_FORMFLAG_TEXT_PASSWORD else says
        elif kind == raw.FPDF_ANNOT_FILEATTACHMENT:
            file = raw.FPDFAnnot_GetFileAttachment(annotation)
            files.append(_string(raw.FPDFAttachment_GetName, file) or "without a name")
        elif kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP, raw.FPDF_ANNOT_WIDGET):
            says = ""
        if says and (hidden or kind not in (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT)):
            unread += 1
        elif says:
            notes.append(says)
        raw.FPDFPage_CloseAnnot(annotation)
    return notes, unread


def _string(get: Callable[..., int], *of: object) -> str:
    size = get(*of, None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    get(*of, buffer, size)
    text = bytes(buffer).decode("utf-16-le", "replace")
    return " ".join(text.replace("\0", " ").split())


def _place_values(page: pdfium.PdfPage, before: int) -> None:
    """Move what annotations drew, at the end, to behind the text left of it, or else above it."""
    order = _page_items(page)
    text = [item for item in order if raw.FPDFPageObj_GetType(item) == raw.FPDF_PAGEOBJ_TEXT]
    boxes = [(item, *_bounds(item)) for item in text]
    for holder in order[before:]:
        for value in sorted(
            _form_items(holder), key=lambda value: (_bounds(value)[1], -_bounds(value)[0])
        ):
            left, bottom, right, top = _bounds(value)
            near = []
            for item, x, y, end, up in boxes:
                if min(up, top) - max(y, bottom) > 0.5 * (up - y) and x < left:
                    near.append((0, left - end, order.index(item)))
                elif y >= (bottom + top) / 2 and x < right and end > left:
                    near.append((1, y - top, order.index(item)))
            if near and raw.FPDFFormObj_RemoveObject(holder, value):
                place = min(near)[2] + 1
                order.insert(place, value)
                raw.FPDFPage_InsertObjectAtIndex(page, value, place)


def _bounds(item: object) -> tuple[float, float, float, float]:
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    raw.FPDFPageObj_GetBounds(item, left, bottom, right, top)
    return left.value, bottom.value, right.value, top.value


def _page_items(page: pdfium.PdfPage) -> list[object]:
    return [raw.FPDFPage_GetObject(page, i) for i in range(raw.FPDFPage_CountObjects(page))]


def _form_items(form: object) -> list[object]:
    return [raw.FPDFFormObj_GetObject(form, i) for i in range(raw.FPDFFormObj_CountObjects(form))]


def _set_upright(
    items: list[object],
    runs: dict[str, list[object]],
    areas: list[float],
    angle: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Rotate runs of text so that they read to the right, and sort out those that are no lines.

    The areas of pictures, in square points, are added to ``areas``.

    Pdfium orders the runs of a line by x, so lines of text that is drawn downward come out last
    to first, as the columns of vertical Japanese do, and it drops runs of no width.
    """
    matrix, size = raw.FS_MATRIX(), ctypes.c_float()
    for item in items:
        kind = raw.FPDFPageObj_GetType(item)
        left, bottom, right, top = _bounds(item)
        if kind == raw.FPDF_PAGEOBJ_IMAGE:
            areas.append((right - left) * (top - bottom) * scale)
        if kind not in (raw.FPDF_PAGEOBJ_TEXT, raw.FPDF_PAGEOBJ_FORM):
            continue
        raw.FPDFPageObj_GetMatrix(item, matrix)
        own = angle + math.atan2(matrix.b, matrix.a)
        if kind == raw.FPDF_PAGEOBJ_FORM:
            enlarged = scale * abs(matrix.a * matrix.d - matrix.b * matrix.c)
            _set_upright(_form_items(item), runs, areas, own, enlarged)
            continue
        raw.FPDFTextObj_GetFontSize(item, size)
        em = abs(size.value) * math.hypot(matrix.c, matrix.d)
        runs["all"].append(item)
        if raw.FPDFTextObj_GetTextRenderMode(item) == raw.FPDF_TEXTRENDERMODE_INVISIBLE:
            runs["invisible"].append(item)
        if right - left < 0.01:
            runs["unseen"] += [item] * (top - bottom < 0.01)
            own -= math.pi / 2
        elif top - bottom > 1.5 * em > right - left and abs(own) < 0.05:
            runs["tall"].append(item)
        if abs(own) > 0.05:
            cos, sin = math.cos(own), math.sin(own)
            raw.FPDFPageObj_Transform(item, cos, -sin, sin, cos, 0, 0)


def _inlaid(items: list[object]) -> list[float]:
    """Return how high runs are that fill gaps in the one before, as letters of another font do."""
    found = []
    host = (0.0, 0.0, 0.0, 0.0)
    for item in items:
        if raw.FPDFPageObj_GetType(item) == raw.FPDF_PAGEOBJ_TEXT:
            left, bottom, right, top = _bounds(item)
            height = min(top - bottom, host[3] - host[1])
            alike = min(top, host[3]) - max(bottom, host[1]) > 0.5 * max(top - bottom, height)
            if alike and host[0] + 0.3 * height < left < host[2] - 0.3 * height:
                found.append((bottom + top) / 2)
            elif right - left > 0.01:
                host = left, bottom, right, top
    return found


def _text(page: pdfium.PdfTextPage, inlaid: list[float]) -> str:
    count = raw.FPDFText_CountChars(page)
    buffer = (ctypes.c_ushort * (2 * count + 2))()
    size = raw.FPDFText_GetText(page, 0, count, buffer)
    text = bytes(buffer)[: 2 * max(size - 1, 0)].decode("utf-16-le", "replace")
    # This one call leaves out codes that no table of the font explains: then they are asked for.
    chars = list(text if len(text) == count else map(_character, repeat(page), range(count)))
    errors = map(raw.FPDFText_HasUnicodeMapError, repeat(page), range(count))
    for index in [index for index, error in enumerate(errors) if error == 1]:
        chars[index] = "\ufffd"
    text = "".join(chars)
    for match in re.finditer("[\x02\ufffe]", text):  # pdfium's mark for hyphens at line ends
        if raw.FPDFText_IsHyphen(page, match.start()) == 1:
            chars[match.start()] = "-\n"
    for match in re.finditer("(?<=[^\x02\ufffe\n])\r\n(?=[^\r])", text):
        _join_lines(page, chars, match.start())
    lines = [line for line in text.split("\r\n") if len(line) > 3]
    doubled = _DOUBLED.search(text)
    twice = bool(doubled and doubled[1])
    if not twice and (doubled or len(lines) != len(set(lines))):
        # Most of these say a thing twice, as tables do: letters that start words show it sooner.
        twice = len(_doubles(page, text, r"\S+")) > 1
    for index in _doubles(page, text, r"[^\s\0]") if twice else ():
        chars[index] = _DELETED
    for match in _SPACED.finditer(text):
        if 2 * len(re.findall(r"\w", match[0])) > len(match[0].replace(" ", "")):  # no dot leaders
            _join_letters(page, chars, *match.span())
    leftward = len(_RIGHT_TO_LEFT.findall(text))
    rightward = leftward < len(re.findall(r"[^\W\d_]", text)) / 2
    for match in re.finditer("[^\r\n]+", text) if inlaid or leftward else ():
        _, _, bottom, height = _box(page, match.start())
        filled = any(bottom < middle < bottom + height for middle in inlaid)
        if filled or _RIGHT_TO_LEFT.search(match[0]):
            _put_in_order(page, chars, *match.span(), rightward)
    text = "".join(chars).replace("\r\n", "\n").translate(_MARKS)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = _NO_LETTER.sub("\ufffd", text)
    return re.sub(" *\n[ \n]*", "\n", re.sub("  +", " ", text)).strip()


def _character(page: pdfium.PdfTextPage, index: int) -> str:
    code = raw.FPDFText_GetUnicode(page, index)
    if code == 0:  # lost text, unless the font gives it no width
        left, right, _, _ = _box(page, index)
        return "\ufffd" if right - left > 0.01 else _DELETED
    return chr(code) if code < 0x110000 else "\ufffd"


def _box(page: pdfium.PdfTextPage, index: int) -> tuple[float, float, float, float]:
    box = raw.FS_RECTF()
    raw.FPDFText_GetLooseCharBox(page, index, box)
    return box.left, box.right, box.bottom, max(box.top - box.bottom, 0.01)


def _doubles(page: pdfium.PdfTextPage, text: str, visible: str) -> list[int]:
    """Return which characters are drawn again at nearly the same place, to look bold or shaded."""
    seen: dict[tuple[str, int, int], tuple[float, float]] = {}
    found = []
    for match in re.finditer(visible, text):
        left, _, bottom, height = _box(page, match.start())
        near = 0.15 * height  # narrower than any letter, so that "ll" stays
        char, column, row = match[0][0], round(left / near), round(bottom / near)
        for cell in ((char, column + i, row + j) for i in (0, -1, 1) for j in (0, -1, 1)):
            x, y = seen.get(cell, (math.inf, math.inf))
            if abs(x - left) < near and abs(y - bottom) < near:
                found.append(match.start())
                break
        else:
            seen[char, column, row] = left, bottom
    return found


def _join_lines(page: pdfium.PdfTextPage, chars: list[str], index: int) -> None:
    """Take out a line break after which the line goes on: for a small number, or another column."""
    _, right, bottom, height = _box(page, index - 1)
    left, _, next_bottom, next_height = _box(page, index + 2)
    common = min(bottom + height, next_bottom + next_height) - max(bottom, next_bottom)
    small = min(height, next_height)
    if common > 0.5 * small and -0.2 * small < left - right:
        chars[index : index + 2] = [" " if left - right > 0.1 * small else _DELETED, _DELETED]


def _put_in_order(
    page: pdfium.PdfTextPage, chars: list[str], start: int, end: int, rightward: bool
) -> None:
    """Order the letters of a line by their places, where pdfium has them in another order.

    That is so of runs that fill gaps in others; and in lines of Arabic or Hebrew of Latin words
    and numbers, brackets, and the letters of a ligature.
    """
    glyphs: list[list[Any]] = []  # left, right, height, and a letter, or those of a ligature
    marks = []
    for index in range(start, end):
        char = chars[index]
        if char == _DELETED or (char == " " and raw.FPDFText_IsGenerated(page, index) == 1):
            continue
        left, right, _, height = _box(page, index)
        if unicodedata.combining(char[0]):
            marks.append((left + right, char))
        elif glyphs and glyphs[-1][:2] == [left, right]:
            pair = (char, glyphs[-1][3]) if _RIGHT_TO_LEFT.match(char) else (glyphs[-1][3], char)
            glyphs[-1][3] = "".join(pair)
        else:
            glyphs.append([left, right, height, char])
    glyphs.sort(key=lambda glyph: glyph[0])
    for middle, mark in marks if glyphs else ():
        min(glyphs, key=lambda glyph: abs(glyph[0] + glyph[1] - middle))[3] += mark
    seen: list[str] = []
    for before, (left, _, height, text) in zip([None, *glyphs], glyphs, strict=False):
        if before and left - before[1] > 0.12 * height and " " not in (before[3], text):
            seen.append(" ")
        seen.append(text)
    line = "".join(_as_read(seen, rightward))
    line = _paired(line) if _RIGHT_TO_LEFT.search(line) else line
    chars[start:end] = [line, *[_DELETED] * (end - start - 1)]


def _as_read(seen: list[str], rightward: bool) -> list[str]:
    """Return letters and signs, which are seen from left to right, as they are read.

    Args:
        seen: each, with its marks.
        rightward: most of the text reads to the right, and words of another direction are in it.
    """
    types = [unicodedata.bidirectional(text[0]) for text in seen]
    kinds = "".join(_KINDS.get(kind, "-") for kind in types)
    if "AL" in types:  # where a sign between numbers parts them, and one after them is apart
        kinds = kinds.translate({ord("e"): "-", ord("m"): "-"})
    if rightward:
        parts = re.finditer("r(?:[^l]*r)?|.", kinds)
        runs = [(kinds[part.start()], seen[part.start() : part.end()]) for part in parts]
        return [
            text for kind, run in runs for text in (_as_read(run, False) if kind == "r" else run)
        ]
    spans = [part.span() for part in _LEFT_TO_RIGHT.finditer(kinds)]
    return [text for start, end in reversed(spans) for text in seen[start:end]]


def _paired(line: str) -> str:
    """Return a line whose brackets open before they close.

    In text that is read to the left pdfium mirrors them, as their shapes are; but some programs
    write which they are in place of how they look.
    """
    for pair in ("()", "[]", "{}", "«»"):
        unpaired = "".join(char for char in line if char in pair)
        turned = cycle(pair) if len(unpaired) % 2 == 0 else iter(unpaired)
        while pair in unpaired:
            unpaired = unpaired.replace(pair, "")
        if unpaired:
            line = "".join(next(turned) if char in pair else char for char in line)
    return line


def _join_letters(page: pdfium.PdfTextPage, chars: list[str], start: int, end: int) -> None:
    """Take out the spaces that pdfium puts between letters drawn one by one, wide apart.

    Letters are joined where the gaps between them are alike and those between words clearly wider;
    a row of single letters or digits, evenly spaced, stays as it is.
    """
    boxes = {i: _box(page, i) for i in range(start, end) if chars[i] != " "}
    gaps = [(boxes[j][0] - boxes[i][1]) / boxes[i][3] for i, j in pairwise(boxes)]
    usual = sorted(gaps)[len(gaps) // 2]
    widest = usual + max(0.12, 0.5 * usual)
    if usual > 0.5 or (usual > 0.17 and max(gaps) <= widest):
        return
    for (i, j), gap in zip(pairwise(boxes), gaps, strict=True):
        for k in range(i + 1, j):
            if gap <= widest and raw.FPDFText_IsGenerated(page, k) == 1:
                chars[k] = _DELETED


def _file_facts(document: pdfium.PdfDocument) -> dict[str, Any]:
    """Return what pdfium repairs in silence: pages out of the tree, streams that are damaged.

    The file is written again for this: without encryption, and with every object in plain sight.
    """
    file = io.BytesIO()
    document.save(file, flags=raw.FPDF_REMOVE_SECURITY)
    data = file.getvalue()
    facts = {"found": len(_PAGE.findall(data)), "broken": 0, "wrong": 0}
    for match in re.finditer(rb">>\s*stream\r?\n", data):
        head = data[max(0, data.rfind(b" obj", 0, match.start())) : match.start()]
        length = re.search(rb"/Length\s+(\d+)", head)
        if _NOT_TEXT.search(head) or not _DEFLATED.search(head) or not (length and int(length[1])):
            continue
        stream = zlib.decompressobj()
        part = data[match.end() : match.end() + int(length[1])]
        try:
            if b"/ASCII85Decode" in head:
                part = base64.a85decode(part.strip(), adobe=True)
            text = stream.decompress(part, 1 << 26)
            facts["wrong" if text else "broken"] += not stream.eof and not stream.unconsumed_tail
        except (ValueError, zlib.error) as error:
            # All of the text came out where only its checksum is wrong.
            facts["wrong" if "incorrect data check" in str(error) else "broken"] += 1
    return facts


if __name__ == "__main__":
    with suppress(ImportError, OSError, ValueError):  # there are no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_GIVEN.pop("memory"),) * 2)
    _GIVEN.pop("memory", None)
    for found in read_pages(sys.stdin.buffer.read(), **_GIVEN):
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()
