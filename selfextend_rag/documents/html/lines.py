"""Lines of text that keep a page's structure: paragraphs, list items, and rows of tables."""

from __future__ import annotations

import re
from collections import deque

_SPACE = re.compile(r"[ \t\r\n\f\u00a0]+")


class Lines:
    """Text built line by line: a page's, or that of a cell, which spans columns and rows."""

    def __init__(self, columns: int = 1, rows: int = 1) -> None:
        self.columns, self.rows = columns, rows
        self.lines = deque[tuple[int, str, str]]()  # line ends before it, prefix, text
        self.prefix = ""  # of the next line that has text
        self.lists: list[int | None] = []  # next number of each open list; None: a dash
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

    def item(self, value: str) -> None:
        """Start an item of the innermost list, with a number of its own or the list's next."""
        number = self.lists[-1] if self.lists else None
        if number is not None:
            number = int(value) if re.fullmatch(r"-?\d{1,9}", value) else number
            self.lists[-1] = number + 1
        mark = "- " if number is None else f"{number}. "
        self.prefix = "  " * min(len(self.lists) - 1, 20) + mark  # a mistake alone nests deeper

    def flat(self) -> str:
        """Return everything in one line, as a table's cell."""
        parts = (("" if "#" in prefix else prefix) + line for _, prefix, line in self.lines)
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
