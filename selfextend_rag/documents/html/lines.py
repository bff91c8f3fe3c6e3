"""Lines of text that keep a page's structure: paragraphs, list items, and rows of tables."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

_ROMAN = (
    *((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l")),
    *((40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)
_SPACE = re.compile(r"[ \t\r\n\f\u00a0]+")


@dataclass(slots=True)
class Numbered:
    """A list's next number, the form of its numbers (see `numeral`), and what is added to each."""

    next: int
    form: str = "1"
    step: int = 1


def numeral(number: int, form: str) -> str:
    """Return a number as lists show it.

    Args:
        number: any; below 1, or in a form that is none of these, it is written in digits.
        form: ``1``, ``01``, ``i`` (Roman), ``a`` (z is followed by aa, ab), ``aa`` (by aa, bb); in
            capitals too; "" for none.
    """
    text, kind = f"{number:0{len(form)}}" if form.isdecimal() else str(number), form.lower()
    if kind == "aa" and number > 0:
        text = chr(97 + (number - 1) % 26) * min((number - 1) // 26 + 1, 100)
    elif kind == "a" and number > 0:
        text = ""
        while number:
            number, rest = divmod(number - 1, 26)
            text = chr(97 + rest) + text
    elif kind == "i" and 0 < number < 4000:
        text = ""
        for value, letters in _ROMAN:
            text += letters * (number // value)
            number %= value
    return "" if not form else text.upper() if form.isupper() else text


class Lines:
    """Text built line by line: a page's, or that of a cell, which spans columns and rows."""

    def __init__(self, columns: int = 1, rows: int = 1) -> None:
        self.columns, self.rows = columns, rows
        self.lines = deque[tuple[int, str, str]]()  # line ends before it, prefix, text
        self.prefix = ""  # of the next line that has text
        self.lists: list[Numbered | None] = []  # the open ones; None: with dashes
        self.structure = 0  # 1: holds headings or lists; 2: tables or preformatted text
        self.line: list[str] = []  # of the open line
        self._gap = 0  # line ends owed before the next line

    def write(self, text: str, *, preformatted: bool = False) -> None:
        """Add to the open line: text as it is, or with white space made single spaces."""
        if not preformatted:
            text = _SPACE.sub(" ", text)
            if not self.line or self.line[-1][-1] in " \n":
                text = text.lstrip(" ")
        if text:
            self.line.append(text)

    def flush(self, gap: int = 0) -> None:
        """End the line; a prefix with nothing after it waits for the text that it is for."""
        line = "".join(self.line).rstrip(" \t\n").lstrip("\n")
        self.line.clear()
        if line:
            self.add(line)
        if not self.prefix:
            self._gap = max(self._gap, gap)

    def add(self, line: str, prefix: str = "") -> None:
        """Add a whole line."""
        self.lines.append((max(self._gap, 1), self.prefix + prefix, line))
        self.prefix, self._gap = "", 0

    def adopt(self, other: Lines) -> None:
        """Add another's lines as paragraphs; the other is used up."""
        self.flush(2)
        if other.lines:
            _, prefix, line = other.lines.popleft()
            self.add(line, prefix)
            if len(other.lines) > len(self.lines):  # tables in tables may be thousands deep
                other.lines.extendleft(reversed(self.lines))
                self.lines, other.lines = other.lines, self.lines
            else:
                self.lines.extend(other.lines)
            self._gap = 2

    def item(self, value: str, label: str | None = None) -> None:
        """Start an item of the innermost list, with a label or number of its own or the next."""
        numbered = self.lists[-1] if self.lists else None
        mark = "- " if label is None else f"{label} ".lstrip()
        if label is None and numbered:
            if re.fullmatch(r"-?\d{1,9}", value):
                numbered.next = int(value)
            mark = f"{numeral(numbered.next, numbered.form)}. "
            numbered.next += numbered.step
        # A mistake alone nests deeper.
        self.prefix = "  " * min(len(self.lists) - 1, 20) + mark

    def flat(self) -> str:
        """Return everything in one line, as a table's cell."""
        parts = (prefix * bool(prefix.strip("# ")) + line for _, prefix, line in self.lines)
        return " ".join(part.strip().replace("\n", " ") for part in parts)

    def text(self) -> str:
        """Return everything."""
        self.flush()
        return "".join("\n" * gap + prefix + line for gap, prefix, line in self.lines).strip("\n")


class Table:
    """Rows of cells, each written as its cells between ``|``.

    A row with headings, lists or tables in it lays out a page: its cells are paragraphs. But where
    the table has header cells, as data has, headings and lists are a part of their cell.
    """

    def __init__(self, layout: bool) -> None:
        self.layout, self.headed = layout, False
        self.ignored = 0  # spans that would have taken too many characters
        self.sections: list[list[list[Lines]]] = [[]]  # rows, which cells span within a section

    def add(self, cell: Lines) -> None:
        """Add a cell to the last row."""
        if not self.sections[-1]:
            self.sections[-1].append([])
        self.sections[-1][-1].append(cell)

    def write(self, out: Lines, spare: int) -> int:
        """Write the rows to ``out``, each value in its column.

        A cell that spans rows is repeated in each, so that every row can be understood alone; the
        further columns of a cell are empty, as a number repeated would be another number.

        Returns:
            What is left of the ``spare`` characters allowed for spans.
        """
        for rows in self.sections:
            grid = [dict[int, str]() for _ in rows]
            for index, row in enumerate(rows):
                laid_out = self._lays_out(row)
                values, end = grid[index], 0
                for cell in row:
                    while end in values:
                        end += 1
                    text = "" if laid_out else cell.flat()
                    below = range(index, min(index + cell.rows, len(rows)))
                    columns = cell.columns
                    size = len(below) * (len(text) + 3 * columns) - len(text) - 3
                    if size > spare:
                        below, columns, size = below[:1], 1, 0
                        self.ignored += 1
                    spare -= size
                    for spanned in below:
                        grid[spanned].update(dict.fromkeys(range(end, end + columns), ""))
                        grid[spanned][end] = text
                    end += 1
                    if laid_out:
                        out.adopt(cell)
                end = max([end, *(column + 1 for column, text in values.items() if text)])
                if row and any(values.values()):
                    out.flush(1)
                    line = " | ".join(values.get(column, "") for column in range(end))
                    out.add(line.rstrip(" "))
        return spare

    def _lays_out(self, row: list[Lines]) -> bool:
        structure = max((cell.structure for cell in row), default=0)
        alone = len(row) == 1 and len(row[0].lines) > 1
        return self.layout or alone or structure > self.headed
