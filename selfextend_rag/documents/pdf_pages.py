"""What pdfium reads on the pages of a PDF, and what a look at the file's own bytes finds.

``pdf.py`` runs this file as a program that reads a PDF from its standard input and writes JSON; so
it imports nothing of the package, but where scans are recognised.
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
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started without a search path, by the process that has one
    _GIVEN = json.loads(sys.argv[1])
    sys.path[:] = _GIVEN.pop("path")

import pypdfium2 as pdfium
import pypdfium2.raw as raw

if __name__ == "__main__":  # the package would take longer to import than most files to read
    sys.path.append(str(Path(__file__).parent))
    pdf_text = import_module("pdf_text")
    sys.path.pop()
else:
    from selfextend_rag.documents import pdf_text

_PICTURED = 0.05  # of a page's area: smaller pictures, as of letterheads, are not remarked on
_SCANNED, _FEW_LETTERS = 0.5, 200  # of a page that is a picture; on it, besides that
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
    pictures: str = "",
) -> Iterator[dict[str, Any] | None]:
    """Yield what is known of a file, and each page's text, as JSON values; or an ``error``.

    Args:
        data: the file.
        seconds: end the process when a page takes longer; 0: no limit.
        scan: recognise text on pages without it, with this limit of seconds; None: don't.
        first: the page to begin with, counted from 0.
        plain: pages on which no text is to be recognised.
        pictures: ``"all"`` to have every page as a picture, ``"needed"`` those without text, or
            with a tenth of it unreadable.
    """
    watch = faulthandler.dump_traceback_later if seconds else lambda *_, **__: None
    watch(seconds, exit=True)
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        locked = error.err_code == raw.FPDF_ERR_PASSWORD
        yield {"error": "password" if locked else "nothing in it can be found"}
        return
    yield {**_facts(document), **_damage(document)}
    document.init_forms()
    for index in range(first, len(document)):
        watch(seconds, exit=True)
        try:
            page = _read_page(document, index)
            # Where letters are lost, other words can't be relied on more than recognised ones; and
            # a few words over a picture of the whole page are a stamp or what a form was given.
            letters = len("".join(page["text"].split()))
            stamped = page.pop("pictured") >= _SCANNED and letters < _FEW_LETTERS
            needed = stamped or 10 * page["garbled"] >= letters
            if scan is not None and needed and index not in plain:
                watch(scan, exit=True)
                page |= _recognise(document, index, page["turned"])
            if pictures == "all" or (pictures and needed):
                page |= _pictured(document, index, page["turned"])
            yield page
        except ImportError as error:
            yield {"error": "vision" if pictures else "ocr", "missing": str(error)}
            return
        except pdfium.PdfiumError:
            yield None


def _facts(document: pdfium.PdfDocument) -> dict[str, Any]:
    count = raw.FPDFDoc_GetAttachmentCount(document)
    attached = [raw.FPDFDoc_GetAttachment(document, index) for index in range(count)]
    return {
        "count": len(document),
        "rebuilt": not raw.FPDF_DocumentHasValidCrossReferenceTable(document),
        "title": _string(raw.FPDF_GetMetaText, document, b"Title"),
        "xfa": document.get_formtype() in (raw.FORMTYPE_XFA_FULL, raw.FORMTYPE_XFA_FOREGROUND),
        "files": [_string(raw.FPDFAttachment_GetName, file) for file in attached],
    }


def _read_page(document: pdfium.PdfDocument, index: int) -> dict[str, Any]:
    page = document.get_page(index)
    notes, unread, files = _annotations(page)
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
    boxes = [_bounds(item) for item in _page_items(page) if _is_text(item)]
    text, unsure = pdf_text.text_of(textpage, pdf_text.fillings(boxes))
    solid = "".join(text.split())  # what lacks an appearance, or has an old one, is added
    text = "\n".join([text, *(s for s in notes if "".join(s.split()) not in solid)]).strip()
    textpage.close()
    page.close()
    unseen = len(runs["unseen"])
    if 2 * unseen <= max(len(runs["all"]), 4):
        unseen = 0  # a space drawn alone has no size either
    garbled = text.count("\ufffd")
    facts = {"text": text, "unread": unread, "unseen": unseen, "garbled": garbled, "files": files}
    facts["unsure"] = unsure
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
    seen = {"text": text, "garbled": 0, "unsure": 0, "pictures": 0} if text else {}
    return {"scan": scan, "blurred": blurred, **seen}


def _pictured(document: pdfium.PdfDocument, index: int, turned: int) -> dict[str, Any]:
    """Return a page as a picture in place of its text, which the picture shows."""
    from selfextend_rag.documents.scans import scale

    page = document.get_page(index)
    picture = page.render(scale=scale(*page.get_size()), rotation=turned).to_pil()
    page.close()
    picture = picture.convert("RGB")
    gray = picture.getchannel(0)
    if all(picture.getchannel(channel).tobytes() == gray.tobytes() for channel in (1, 2)):
        picture = gray
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    seen = {"text": "", "garbled": 0, "unsure": 0, "pictures": 0, "unseen": 0}
    return {"picture": base64.b64encode(out.getvalue()).decode("ascii"), **seen}


def _annotations(page: pdfium.PdfPage) -> tuple[list[str], int, list[str]]:
    """Return what notes and text fields say, how many more texts the page does not show, and the
    names of files."""
    notes, unread, files, form = [], 0, list[str](), page.formenv
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
    return notes, unread, files


def _string(get: Callable[..., int], *of: object) -> str:
    size = get(*of, None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    get(*of, buffer, size)
    text = bytes(buffer).decode("utf-16-le", "replace")
    return " ".join(text.replace("\0", " ").split())


def _place_values(page: pdfium.PdfPage, before: int) -> None:
    """Move what annotations drew, at the end, to behind the text left of it, or else above it."""
    order = _page_items(page)
    boxes = [(item, *_bounds(item)) for item in order if _is_text(item)]
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


def _is_text(item: object) -> bool:
    return bool(raw.FPDFPageObj_GetType(item) == raw.FPDF_PAGEOBJ_TEXT)


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


def _damage(document: pdfium.PdfDocument) -> dict[str, Any]:
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
