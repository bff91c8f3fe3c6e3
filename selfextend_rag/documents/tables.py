"""CSV and TSV files: a line for each row, with its number."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter

from selfextend_rag.documents.content import Content, Location, Remark

_DELIMITERS = "\t;|,"  # where several fit: a comma inside of semicolons is a decimal one
_SEP_LINE = re.compile(r"sep=(.)\n")  # Excel's own, which it does not show


def read_table(text: str, name: str) -> Content:
    """Return the rows of a table, each a line of its cells between ``|``, numbered from 1.

    Line ends inside a cell become a space, so that a line is a row. A file that no delimiter
    splits into like rows, or whose quotes do not close, is kept as it is, which is remarked.
    """
    sep = _SEP_LINE.match(text)
    body = text[sep.end() :] if sep else text
    delimiters = sep[1] if sep else "\t" if name.lower().endswith(".tsv") else _DELIMITERS
    tables = [_table(body, delimiter) for delimiter in delimiters if delimiter in body]
    alike, lines = max(tables, key=lambda table: table[0], default=(0.0, []))
    if alike >= 0.8:
        return Content("\n".join(lines), locations=(Location(0, "table", 1),))
    says = "its rows could not be separated for sure, and are kept as they are in the file"
    return Content(text, remarks=(Remark("table kept as it is", says),))


def _table(text: str, delimiter: str) -> tuple[float, list[str]]:
    """Return the share of rows of the commonest number of cells, if over one, and the lines."""
    lines: list[str] = []
    widths: Counter[int] = Counter()
    file = io.StringIO(text, newline="\n")
    # Programs write a quote after a space too; white space around a cell is left out anyway.
    rows = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for row in rows:
            cells = (re.sub(r"\s*\n\s*", " ", c) if "\n" in c else c for c in map(str.strip, row))
            lines.append(" | ".join(cells).rstrip() if any(map(str.strip, row)) else "")
            widths[len(row)] += bool(row)
    except csv.Error:  # a quote that does not close, a cell of over 131,072 characters
        return 0.0, []
    width, count = widths.most_common(1)[0]
    return (count / widths.total() if width > 1 else 0.0), lines
