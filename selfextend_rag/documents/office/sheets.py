"""Excel files (.xlsx): every sheet, a line for each row, with the values that people see.

The rows are read here: openpyxl's reader silently leaves out what it does not expect (cells out of
order or outside the dimensions stated, dates out of range, whole sheets of "strict" files), and
has a formula or its value, not both. What formats, dates and shared formulas mean, openpyxl says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from math import isfinite
from operator import eq, ge, gt, le, lt, ne
from typing import Any

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.office.ooxml import graphics, lines, simplified
from selfextend_rag.documents.office.package import Package, at, local

Row = tuple[int, dict[int, str]]  # its number, and its cells by the number of their column
_MOST_CHARACTERS = 50_000_000  # of a sheet, whose columns may be far apart
_LITERALS = 0xF0000
# In quotes, after a backslash, a currency; ``_x`` and ``*x`` are space.
_LITERAL = re.compile(r'"([^"]*)"|\\(.)|\[\$([^\]-]*)[^\]]*\]|[_*].|["\\]')
_DIGITS = re.compile(r"General|\.?[0#?](?:.*[0#?.,])?(?:/\d+)?")
_CONDITION = re.compile(r"\[([<>=]+)(-?[\d.]+)\]")
_COMPARED = {"<": lt, "<=": le, ">": gt, ">=": ge, "=": eq, "<>": ne}
_MARGIN_CODES = re.compile(r'&(?:"[^"]*"|K[0-9A-F]{6}|\d+|[A-Z+-])')


def read_xlsx(data: bytes, name: str) -> Content:
    """Return every sheet under its name, its rows as cells between ``|``, with their places.

    Formulas are their values as last computed, or themselves where nothing was computed. Dates are
    ISO; percent signs, currencies and units are written, and digits are not rounded. Rows and
    columns without any value are left out. Comments, text boxes, charts and page margins follow.

    Raises:
        DocumentError: it is damaged, encrypted or without text, or openpyxl is not installed.
    """
    package = Package(data, name)
    with package.reading():
        main = package.main("xl/workbook.xml")
        workbook, relations = package.xml(main), package.relations(main)
        book, sheets = _Book(package, workbook, main), workbook.findall("{*}sheets/{*}sheet")
        for sheet in sheets:
            member, place = relations[at(sheet, "id")][1], f"sheet {sheet.get('name')}"
            root = simplified(package, member)
            package.head(place, sheet.get("state", "visible") != "visible")
            for row, line in aligned(book.rows(root)):
                package.add(line, place, row)
            hidden = root.iterfind(".//*[@hidden='1']")
            package.counts["hidden rows"] += sum(local(e) in ("row", "col") for e in hidden)
            package.add("\n".join(_extras(root, package, member)), place)
        return package.content(sheets=[sheet.get("name") for sheet in sheets])


def aligned(rows: Iterable[Row]) -> Iterator[tuple[int, str]]:
    """Yield the number and the line of each row in order, every column at the same place."""
    rows = sorted((row for row in rows if row[1]), key=lambda row: row[0])
    columns = sorted({column for _, cells in rows for column in cells})
    places = {column: place for place, column in enumerate(columns, 1)}
    if sum(3 * places[max(cells)] for _, cells in rows) > _MOST_CHARACTERS:
        raise ValueError(f"its {len(rows)} rows are spread over {len(columns)} columns")
    for number, cells in rows:
        yield number, " | ".join(cells.get(c, "") for c in columns[: places[max(cells)]])


class _Book:
    """What the cells of all sheets refer to: strings, number formats and the first day."""

    def __init__(self, package: Package, workbook: Any, main: str) -> None:
        import openpyxl

        self._openpyxl, self._counts = openpyxl, package.counts
        self._dates, self._numbers = openpyxl.utils.datetime, openpyxl.styles.numbers
        mac = workbook.xpath("*[local-name()='workbookPr'][@date1904='1' or @date1904='true']")
        self._epoch = self._dates.MAC_EPOCH if mac else self._dates.WINDOWS_EPOCH
        self._strings, self._formats = list[str](), list[str]()
        for kind, member in package.relations(main).values():
            if kind == "sharedStrings":
                self._strings = [_string(node) for node in package.xml(member).iterfind("{*}si")]
            elif kind == "styles":
                styles, known = package.xml(member), self._numbers.BUILTIN_FORMATS
                own = {n.get("numFmtId"): n.get("formatCode") for n in styles.iter("{*}numFmt")}
                numbers = (xf.get("numFmtId", "0") for xf in styles.iterfind("{*}cellXfs/{*}xf"))
                # Excel allows 255 characters; each cell's is searched.
                self._formats = [
                    (own.get(n) or known.get(int(n), "General"))[:255] for n in numbers
                ]

    def rows(self, sheet: Any) -> Iterator[Row]:
        """Yield the number and the cells of each row."""
        number, shared, utils = 0, dict[str, Any](), self._openpyxl.utils.cell
        for row in sheet.iterfind("{*}sheetData/{*}row"):
            number, column, cells = int(row.get("r", number + 1)), 0, dict[int, str]()
            for cell in row.iterfind("{*}c"):
                place = cell.get("r") or f"{utils.get_column_letter(column + 1)}{number}"
                column = utils.coordinate_to_tuple(place)[1]
                if text := " ".join(self._text(cell, place, shared).split()):
                    cells[column] = f"{cells[column]} {text}" if column in cells else text
            yield number, cells

    def _text(self, cell: Any, place: str, shared: dict[str, Any]) -> str:
        """Return what a cell shows."""
        kind, text, formula = cell.get("t", "n"), cell.findtext("{*}v"), cell.find("{*}f")
        if formula is not None:
            if formula.text and formula.get("si"):
                translator = self._openpyxl.formula.translate.Translator
                shared[formula.get("si")] = translator(f"={formula.text}", place)
            if not text and (kind != "str" or text is None):
                self._counts["formulas"] += 1
                same = None if formula.text else shared.get(formula.get("si"))
                return str(same.translate_formula(place) if same else f"={formula.text or ''}")
        if kind == "inlineStr" or not text:
            return _string(cell)
        if kind == "s":
            return self._strings[int(text)]
        if kind == "b":
            return "FALSE" if text == "0" else "TRUE"
        if kind == "d":
            return str(text).removesuffix("Z").removesuffix("T00:00:00").replace("T", " ")
        return self._number(text, int(cell.get("s", 0))) if kind == "n" else _unescaped(text)

    def _number(self, text: str, style: int) -> str:
        """Return a number as its format says: a day or a time in ISO form, or with its unit."""
        code = self._formats[style] if style < len(self._formats) else "General"
        with suppress(ValueError, OverflowError):  # of no number, or no day of the calendar
            if not self._numbers.is_date_format(code):
                return _formatted(float(text), code)
            elapsed = self._numbers.is_timedelta_format(code)
            moment = self._dates.from_excel(float(text), self._epoch, timedelta=elapsed)
            if isinstance(moment, timedelta):
                minutes, seconds = divmod(round(moment.total_seconds()), 60)
                return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
            moment = moment.isoformat(timespec="seconds").removesuffix("T00:00:00")
            return str(moment).replace("T", " ")
        return text


def _extras(sheet: Any, package: Package, member: str) -> Iterator[str]:
    """Yield what a sheet shows outside its cells: comments, drawings and page margins."""
    for kind, part in package.relations(member).values():
        if kind in ("comments", "threadedComment", "drawing"):
            root = simplified(package, part)
            for comment in root.iter("{*}comment", "{*}threadedComment"):
                says = " ".join((_string(comment) or comment.findtext("{*}text", "")).split())
                if not says.startswith("[Threaded comment]"):  # a copy for older programs
                    yield f"Comment on {comment.get('ref')}: {says}"
            yield from (*lines(root), *graphics(root, package, part)) if kind == "drawing" else ()
        elif kind == "vmlDrawing" and sheet.find("{*}controls") is None:
            controls = re.findall(rb'ObjectType="(?!Note|Pict)', package.read(part))
            package.counts["form controls"] += len(controls)
    for margin in sheet.iterfind("{*}headerFooter/*"):
        text = " ".join(_MARGIN_CODES.sub(" ", margin.text or "").split())
        if re.sub(r"Page|of|\W", "", text):
            yield f"Page {local(margin)[-6:].lower()}: {text}"


def _string(node: Any) -> str:
    """Return the text of a string, without the readings of its ideographs."""
    parts = (t.text or "" for t in node.iter("{*}t") if local(t.getparent()) != "rPh")
    return _unescaped("".join(parts))


def _unescaped(text: str) -> str:
    return re.sub("_x([0-9A-Fa-f]{4})_", lambda code: chr(int(code[1], 16)), text)


def _formatted(number: float, code: str) -> str:
    """Return a number in place of the digits of its format, but unrounded: ``-12.345 %``."""
    code = _LITERAL.sub(lambda found: _literal(found[1] or found[2] or found[3] or ""), code)
    sections = code.split(";")
    conditions = [_CONDITION.search(section) for section in sections]
    if any(conditions):
        fits = [c is None or _COMPARED[c[1]](number, float(c[2])) for c in conditions]
        own, form = False, sections[fits.index(True) if any(fits) else -1]
    else:
        own = number < 0 and len(sections) > 1
        form = sections[1 if own else 2 if not number and len(sections) > 2 else 0]
    form = re.sub(r"\[[^\]]*\]", "", form)
    digits = _DIGITS.search(form)
    if not digits or not isfinite(number):
        return f"{number:.15g}"
    places = digits[0]
    scale = 100 if "%" in form else 0.001 ** (len(places) - len(places.rstrip(",")))
    shown = f"{abs(number) * scale:.15g}"
    shown = f"{Decimal(shown):f}" if "E" not in form and abs(number) < 1e21 else shown
    whole, dot, rest = shown.partition(".")
    if "/" not in places:
        whole = whole.zfill(re.split("[.E]", places)[0].count("0"))
    if not dot and not re.search(r"[./E]", places):
        whole = _placed(whole, places)
    sign = "-" * (number < 0 and not (own and re.search("[-(]", form)))
    shown = f"{form[: digits.start()]}{sign}{whole}{dot}{rest}{form[digits.end() :]}"
    return "".join(chr(ord(c) - _LITERALS) if ord(c) >= _LITERALS else c for c in shown)


def _placed(figures: str, places: str) -> str:
    """Return figures with what the places for them have in between, as in ``000-00-0000``."""
    left, text = list(figures), ""
    for place in reversed(places):
        if place in "0#?":
            text = (left.pop() if left else "") + text
        elif place not in ",General":
            text = place + text
    return "".join(left) + text


def _literal(text: str) -> str:
    """Return text that is no part of a number's format, as characters that no format has."""
    return "".join(chr(ord(c) + _LITERALS) for c in text if ord(c) < 0x10000)
