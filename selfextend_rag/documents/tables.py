"""CSV and TSV files: a line for each row, with its number."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from contextlib import suppress
from itertools import islice

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
    likeness = {delimiter: _likeness(body, delimiter) for delimiter in delimiters}
    delimiter = max(likeness, key=lambda d: likeness[d])
    lines = []
    with suppress(csv.Error):  # a quote that does not close, a cell of over 131,072 characters
        for row in csv.reader(_lines(body), delimiter=delimiter, strict=True):
            line = " | ".join(re.sub(r"\s*\n\s*", " ", cell).strip() for cell in row)
            lines.append(line.rstrip() if line.strip(" |") else "")
        if likeness[delimiter] >= 0.8:
            return Content("\n".join(lines), locations=(Location(0, "table", 1),))
    says = "its rows could not be separated for sure, and are kept as they are in the file"
    return Content(text, remarks=(Remark("table kept as it is", says),))


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="\n")  # no other character ends a row


def _likeness(text: str, delimiter: str) -> float:
    """Return the share of the first rows that have the commonest number of cells, if over one."""
    rows = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    try:
        widths = Counter(len(row) for row in islice(rows, 1000) if row)
    except csv.Error:
        return 0.0
    width, count = max(widths.items(), key=lambda item: item[1], default=(1, 0))
    return count / widths.total() if width > 1 else 0.0
