"""OpenDocument (.odt, .odp, .ods, .odg, flat .fodt ...): text by way of HTML, sheets by rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html import escape, unescape
from posixpath import normpath
from typing import Any

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.html import labelled_item, read_html
from selfextend_rag.documents.office.numbers import OTHER, Count, Level
from selfextend_rag.documents.office.package import Package, at, local, zipped
from selfextend_rag.documents.office.sheets import Row, aligned
from selfextend_rag.errors import DocumentError

# Markup around what an element contains; others add none, and nothing that they contain is lost.
_AROUND = {
    **{"p": "p", "list": "ul", "list-header": "li", "table": "table", "table-row": "tr"},
    **{"table-cell": "td", "covered-table-cell": "td"},
    **dict.fromkeys(("text-box", "custom-shape", "rect", "ellipse", "line", "connector"), "div"),
}
# Templates of indexes, programs, and what a remark speaks of.
_SKIPPED = re.compile("(.*-source|scripts?|event-listeners|forms|tracked-changes|binary-data)")
_OBJECTS = ("plugin", "applet", "floating-frame")
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
    flat = not data.startswith(b"PK")  # one XML file, with what others have in several
    package = Package(zipped("content.xml", data) if flat else data, name)
    manifest = "META-INF/manifest.xml"
    with package.reading():
        if manifest in package.members and b"encryption-data" in package.read(manifest):
            raise DocumentError(f"{name} is encrypted with a password; save it without one")
        content = package.xml("content.xml")  # of a formula, nothing but that
        body = next(content.iterfind("{*}body/*"), content)
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
            hidden = table.iter("{*}table-row", "{*}table-column")
            package.counts["hidden rows"] += sum(
                at(e, "visibility") in ("collapse", "filter") for e in hidden
            )
        if kind in ("odt", "odf"):
            package.add(reader.text([body]))
        margins = "\n".join(f"On pages: {text}" for text in reader.margins(body))
        package.add(margins, "" if kind in ("odt", "odf") else "page margins")
        package.counts["macros"] += len(content.findall("{*}scripts//{*}module"))
        title = content.findtext("{*}meta/{*}title") or ""
        return package.content(title, format=f"f{kind}" if flat else kind)


class _Reader:
    """Writes the parts of a file as HTML, and counts what it leaves out."""

    def __init__(self, package: Package, body: Any) -> None:
        self._package, self._counts, root = package, package.counts, body.getroottree().getroot()
        member = "styles.xml"
        self._roots = [root, *([package.xml(member)] if member in package.members else [])]
        self._styles = {
            at(s, "name"): _levels(s) for r in self._roots for s in r.iter("{*}list-style")
        }
        outlines = [_levels(s) for r in self._roots for s in r.iter("{*}outline-style")]
        self._outline, self._chapters = (outlines or [{}])[0], Count()
        self._lists: list[tuple[dict[int, Level], Count]] = []  # those open
        self._counted = dict[str, Count]()  # by the names of styles and lists
        properties = [
            node
            for r in self._roots
            for style in r.iterfind("{*}*/{*}style")
            for node in style
            if local(node).endswith("-properties")
        ]
        self.hidden = {
            at(node.getparent(), "name")
            for node in properties
            if at(node, "visibility") == "hidden" or at(node, "display") in ("false", "none")
        }
        self._counts["pictures"] += sum(at(node, "fill") == "bitmap" for node in properties)
        self._controls = {at(node, "id"): node for node in body.iterfind(".//{*}forms//*")}
        self._objects, self._repeated, self._label = set[str](), 0, ""

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
        elif name in ("s", "tab", "line-break"):
            yield "<br>" if name == "line-break" else " "
        elif name in ("note", "annotation"):
            author = f"comment by {node.findtext('{*}creator', '?')}: " * (name == "annotation")
            says = self.plain(child for child in node if local(child) not in _ABOUT)
            yield escape(f" [{author}{says}] ")
        elif name == "control":
            yield escape(f" {_control(self._controls.get(at(node, 'control')))} ")
        elif name == "number" and local(node.getparent()) in ("list-item", "h"):
            return  # is written where the text starts
        elif name in ("object", "object-ole") and not len(node):
            yield from self._object(normpath(f"{at(node, 'href')}/content.xml"))
        elif name == "document":  # an object in a flat file
            yield from (text for body in node.iterfind("{*}body") for text in self._markup(body))
        elif name == "semantics" and (formula := node.findtext("{*}annotation")):
            yield escape(formula)  # in one line, where MathML has every sign apart
        else:
            shows = ("object", "table")  # of which the picture is a copy
            if name == "image" and all(node.getparent().find(f"{{*}}{x}") is None for x in shows):
                self._counts["pictures"] += 1
            self._counts["embedded objects"] += name in _OBJECTS
            hidden = at(node, "style-name") in self.hidden or at(node, "display") == "none"
            self._counts["hidden text"] += hidden and name in ("p", "section", "span")
            yield from self._element(node, name)

    def _element(self, node: Any, name: str) -> Iterator[str]:
        tag, start = _AROUND.get(name, "div" if "svg" in node.tag else ""), ""
        if name == "list":
            self._lists.append(self._list(node))
        elif name == "list-item":
            tag, start = self._item(node)
        elif name == "h":
            tag = f"h{min(int(at(node, 'outline-level') or 1), 6)}"
            label, self._label = self._label or self._chapter(node), ""
            start = f"<{tag}>{escape(label)} "
        parts = [escape(node.text or "")]
        for child in node:
            parts += (*self._markup(child), escape(child.tail or ""))
        inside = "".join(parts)
        if name == "list":
            self._lists.pop()
        elif name == "p" and local(node.getparent()) == "list-item":
            tag, inside = "", f"{inside}<br>"
        elif name == "ruby-text" and inside:
            inside = f"({inside})"
        elif tag == "tr":
            inside = re.sub("(<td></td>)+$", "", inside)
        whole = f"{start or f'<{tag}>'}{inside}</{tag}>" if tag else inside
        repeated = tag == "td" or (tag == "tr" and _visible(inside))
        yield whole * (self._times(node, len(whole)) if repeated else 1)

    def _list(self, node: Any) -> tuple[dict[int, Level], Count]:
        """Return how a list is numbered, and its count, which may go on that of another."""
        style = at(node, "style-name")
        if self._lists:
            levels, count = self._lists[-1]
            return self._styles.get(style, levels), count
        other = at(node, "continue-list") or style * (at(node, "continue-numbering") == "true")
        count = self._counted[other] if other in self._counted else Count()
        self._counted |= {name: count for name in (style, at(node, "id")) if name}
        return self._styles.get(style, {}), count

    def _item(self, node: Any) -> tuple[str, str]:
        """Return the tag of an item and how it starts; of one that only holds a list, none."""
        first = next(node.iterchildren("{*}p", "{*}h", "{*}list"), None)
        if first is None or local(first) == "list":
            return "", ""
        label = self._number(*self._lists[-1], len(self._lists) - 1, node)
        if local(first) == "h":
            self._label = label or ""
            return "", ""
        return "li", "<li>" if label is None else labelled_item(escape(label))

    def _chapter(self, node: Any) -> str:
        level = int(at(node, "outline-level") or 1) - 1
        if self._lists or at(node, "is-list-header") == "true" or level not in self._outline:
            return ""
        return self._number(self._outline, self._chapters, level, node) or ""

    def _number(self, levels: dict[int, Level], count: Count, level: int, node: Any) -> str | None:
        """Return the number of an item or a heading, as written in the file or as counted."""
        own = levels.get(level, Level(None))
        start = at(node, "start-value") or (at(node, "restart-numbering") == "true" and own.start)
        shown = count.next(levels, level, int(start) if start else None)
        self._counts["list numbers"] += shown is not None and own.form == OTHER
        return node.findtext("{*}number") or shown

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
        parts = [part for part in body if local(part).endswith("-decl") and part.text]
        parts += [part for root in self._roots for part in root.iterfind(".//{*}master-page/*")]
        said = dict[str, None]()
        for part in parts:
            text = self.plain([part])
            numbers = part.iter("{*}page-number", "{*}page-count")
            rest = re.sub("|".join(re.escape(n.text) for n in numbers if n.text) or "$", "", text)
            if re.sub(r"Page|of|\W", "", rest):
                said[text] = None
        return [*said]


def _levels(style: Any) -> dict[int, Level]:
    """Return how a style of lists or headings numbers its levels."""
    nodes = {int(at(node, "level")) - 1: node for node in style if at(node, "level")}
    forms = {level: at(node, "num-format") for level, node in nodes.items()}
    levels = {}
    for level, node in nodes.items():
        shown = range(level + 1 - min(int(at(node, "display-levels") or 1), 10), level + 1)
        text = ".".join(f"%{n + 1}" for n in shown if forms.get(n) and forms[level])
        text = f"{at(node, 'num-prefix')}{text}{at(node, 'num-suffix')}"
        form = forms[level] if forms[level] in ("1", "a", "A", "i", "I", "") else OTHER
        form *= 1 + (form in ("a", "A") and at(node, "num-letter-sync") == "true")
        marked = re.search("bullet|image", local(node))
        levels[level] = Level(None if marked else text, form, int(at(node, "start-value") or 1))
    return levels


def _control(node: Any) -> str:
    """Return what a control of a form shows."""
    if node is None or local(node) in ("password", "hidden"):
        return ""
    said, choices = at(node, "label"), ("checkbox", "radio", "option")
    if local(node) in choices:
        states = ("current-state", "state", "current-selected", "selected")
        state = next(filter(None, (at(node, key) for key in states)), "")
        said = f"[{'x' if state in ('checked', 'true') else ' '}] {said}"
    elif local(node) != "button":
        said = " ".join((said, at(node, "current-value") or at(node, "value")))
    parts = (said, *map(_control, node.iterfind("{*}option")), *(p.text for p in node.iter("{*}p")))
    return " ".join(filter(None, parts))


def _visible(markup: str) -> str:
    """Return the text of markup in one line; every ``<`` in it starts a tag."""
    return " ".join(unescape(re.sub("<[^>]*>", " ", markup)).split())
