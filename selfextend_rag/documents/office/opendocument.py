"""OpenDocument files (.odt, .odp, .ods, .odg): text by way of HTML, and sheets row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape, unescape
from posixpath import normpath
from typing import Any

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.html import read_html
from selfextend_rag.documents.office.package import Package, at, local
from selfextend_rag.documents.office.sheets import Row, aligned
from selfextend_rag.errors import DocumentError

# Markup around what an element contains; others add none, and nothing that they contain is lost.
_AROUND = {
    **{"p": "p", "list-item": "li", "list-header": "li", "table": "table", "table-row": "tr"},
    **{"table-cell": "td", "covered-table-cell": "td", "title": "div", "desc": "div"},
    **dict.fromkeys(("text-box", "custom-shape", "rect", "ellipse", "line", "connector"), "div"),
}
# Templates of indexes, programs, and what a remark speaks of.
_SKIPPED = re.compile("(.*-source|scripts?|event-listeners|forms|tracked-changes|binary-data)")
_MOST_REPEATED = 1_000_000  # characters, of rows and cells that are there once for many
_ABOUT = ("creator", "creator-initials", "date", "date-string", "note-citation")  # of a note
_KINDS = {"text": "odt", "spreadsheet": "ods", "presentation": "odp", "drawing": "odg"}


def read_opendocument(data: bytes, name: str) -> Content:
    """Return the text of an OpenDocument file: its body, notes, comments and page margins.

    Presentations and drawings have ``slide N`` or ``page N`` as places, spreadsheets the sheet and
    row; cells are as the file shows them, but dates are ISO. An object in the file (a chart, an
    equation) is read too. Deleted text, pictures and forms are remarked on.

    Raises:
        DocumentError: it is damaged, encrypted or without text.
    """
    package, manifest = Package(data, name), "META-INF/manifest.xml"
    with package.reading():
        if manifest in package.members and b"encryption-data" in package.read(manifest):
            raise DocumentError(f"{name} is encrypted with a password; save it without one")
        body = package.xml("content.xml").find("{*}body/*")
        kind, reader = _KINDS.get(local(body), "odf"), _Reader(package, body)
        for number, page in enumerate(body.findall("{*}page"), 1):
            titles = dict.fromkeys(frame for frame in page if at(frame, "class") == "title")
            shapes = (e for e in page if e not in titles and local(e) != "notes")
            place = f"{'slide' if kind == 'odp' else 'page'} {number}"
            package.head(place, at(page, "style-name") in reader.hidden, reader.plain(titles))
            package.add(reader.text(shapes), place)
            package.add(reader.text(page.findall("{*}notes")), place)
        for table in body.findall("{*}table") if kind == "ods" else ():
            place = f"sheet {at(table, 'name')}"
            package.head(place, at(table, "style-name") in reader.hidden)
            for row, line in aligned(reader.rows(table)):
                package.add(line, place, row)
            package.add(reader.text(table.findall("{*}shapes")), place)
        if kind in ("odt", "odf"):
            package.add(reader.text([body]))
        margins = "\n".join(f"On pages: {text}" for text in reader.margins(body))
        package.add(margins, "" if kind in ("odt", "odf") else "page margins")
        return package.content(format=kind)


class _Reader:
    """Writes the parts of a file as HTML, and counts what it leaves out."""

    def __init__(self, package: Package, body: Any) -> None:
        self._package, self._counts, root = package, package.counts, body.getroottree().getroot()
        numbered = root.iter("{*}list-level-style-number")
        self._numbered = {at(level.getparent(), "name") for level in numbered}
        self.hidden = {
            at(properties.getparent(), "name")
            for properties in root.iter("{*}drawing-page-properties", "{*}table-properties")
            if at(properties, "visibility") == "hidden" or at(properties, "display") == "false"
        }
        self._objects, self._repeated = set[str](), 0

    def text(self, nodes: Iterable[Any]) -> str:
        """Return elements as text, "" where they have none."""
        markup = "".join(text for node in nodes for text in self._markup(node))
        return read_html(markup, self._package.name).text if _visible(markup) else ""

    def plain(self, nodes: Iterable[Any]) -> str:
        """Return the text of elements in one line."""
        return _visible("".join(text for node in nodes for text in self._markup(node)))

    def _markup(self, node: Any) -> Iterator[str]:
        """Yield an element as HTML."""
        name = local(node)
        if _SKIPPED.fullmatch(name):
            self._counts["deletions"] += sum(1 for _ in node.iter("{*}deletion"))
            self._counts["form controls"] += len(node.findall("{*}form/*"))
        elif name in ("s", "tab", "line-break"):
            yield "<br>" if name == "line-break" else " "
        elif name in ("note", "annotation"):
            author = f"comment by {node.findtext('{*}creator', '?')}: " * (name == "annotation")
            says = self.plain(child for child in node if local(child) not in _ABOUT)
            yield escape(f" [{author}{says}] ")
        elif name in ("object", "object-ole") and not len(node):
            yield from self._object(normpath(f"{at(node, 'href')}/content.xml"))
        elif name == "semantics" and (formula := node.findtext("{*}annotation")):
            yield escape(formula)  # in one line, where MathML has every sign apart
        else:
            if name == "image" and node.getparent().find("{*}object") is None:
                self._counts["pictures"] += 1
            yield from self._element(node, name)

    def _element(self, node: Any, name: str) -> Iterator[str]:
        parts, tag = [escape(node.text or "")], _AROUND.get(name, "")
        for child in node:
            parts += (*self._markup(child), escape(child.tail or ""))
        inside = "".join(parts)
        if name == "h":
            tag = f"h{min(int(at(node, 'outline-level') or 1), 6)}"
        elif name == "list":
            tag = "ol" if at(node, "style-name") in self._numbered else "ul"
        elif tag == "tr":
            inside = re.sub("(<td></td>)+$", "", inside)
        whole = f"<{tag}>{inside}</{tag}>" if tag else inside
        repeated = tag == "td" or (tag == "tr" and _visible(inside))
        yield whole * (self._times(node, len(whole)) if repeated else 1)

    def _times(self, node: Any, size: int) -> int:
        """Return how often a row or cell of so many characters is there, within the limit."""
        stated = int(at(node, "number-columns-repeated") or at(node, "number-rows-repeated") or 1)
        times = min(stated, 1 + (_MOST_REPEATED - self._repeated) // max(size, 1))
        self._repeated += (times - 1) * size
        self._counts["repetitions"] += stated - times
        return times

    def _object(self, member: str) -> Iterator[str]:
        """Yield an object that is a document of its own in the file, once."""
        if member in self._package.members and member not in self._objects:
            self._objects.add(member)
            root = self._package.xml(member)
            yield from self._markup(next(root.iterfind("{*}body"), root))
        else:
            self._counts["embedded objects"] += 1

    def rows(self, table: Any) -> Iterator[Row]:
        """Yield the number and the cells of each row of a sheet, repeated ones too."""
        number = 0
        for row in table.iter("{*}table-row"):
            cells, column = dict[int, str](), 0
            for cell in row.iterchildren("{*}table-cell", "{*}covered-table-cell"):
                if text := self._cell(cell):
                    cells.update((column + i, text) for i in range(self._times(cell, len(text))))
                column += int(at(cell, "number-columns-repeated") or 1)
            times = self._times(row, sum(map(len, cells.values()))) if cells else 0
            yield from ((number + i, cells) for i in range(1, times + 1))
            number += int(at(row, "number-rows-repeated") or 1)

    def _cell(self, cell: Any) -> str:
        """Return what a cell shows, a date in ISO form, and what is attached to it."""
        shown = self.plain(cell.iterfind("{*}p")) or at(cell, "string-value") or at(cell, "value")
        formula = at(cell, "formula").partition(":")[2]
        if formula and not shown and at(cell, "value-type") != "string":
            self._counts["formulas"] += 1
            shown = formula
        date = at(cell, "date-value").removesuffix("T00:00:00").replace("T", " ")
        attached = self.plain(child for child in cell if local(child) != "p")
        return f"{date or shown} {attached}".strip()

    def margins(self, body: Any) -> list[str]:
        """Return what pages have by their style (headers, footers, a background), each once."""
        member, parts = "styles.xml", body.findall("{*}footer-decl")
        if member in self._package.members:
            parts += self._package.xml(member).iterfind(".//{*}master-page/*")
        said = dict.fromkeys(self.plain([part]) for part in parts)
        return [text for text in said if re.sub(r"Page|\W|\d", "", text)]


def _visible(markup: str) -> str:
    """Return the text of markup in one line; every ``<`` in it starts a tag."""
    return " ".join(unescape(re.sub("<[^>]*>", " ", markup)).split())
