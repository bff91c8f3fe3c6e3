"""From HTML to text that keeps the structure: headings, paragraphs, lists, table rows."""

from __future__ import annotations

import re
from collections import Counter

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PageElement, PreformattedString

from selfextend_rag.documents.content import Content, Remark
from selfextend_rag.errors import DocumentError

_REMOVED = ("script", "style", "nav", "template", "svg")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_LISTS = ("ul", "menu", "ol")
_PARAGRAPHS = (
    *("address", "article", "aside", "blockquote", "body", "caption", "details", "dialog"),
    *("div", "dl", "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup"),
    *("hr", "main", "p", "pre", "section", "summary", "table", *_LISTS, *_HEADINGS),
)
_LINES = ("br", "dd", "dt", "li", "tr", "option")
# A row that holds one of these lays out a page; any other is a row of a table.
_LAYOUT = [*_HEADINGS, "ul", "ol", "dl", "table", "pre", "blockquote"]
_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{0,200}?encoding\s*=\s*["']"""
    rb"([\w.:-]+)",
    re.IGNORECASE,
)


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that the first bytes of an HTML or XML file declare, or None."""
    found = _DECLARED.search(data[:4096])
    return (found.group(1) or found.group(2)).decode("ascii") if found else None


def read_html(markup: str, name: str) -> Content:
    """Return the text of a page without its scripts, styles, navigation and drawings.

    Headings start with ``#`` signs, list items with ``-`` or their number, and table rows are
    their cells between ``|``; a superscript number is written ``^2``. Link targets, images,
    comments and soft hyphens are no text and leave none. A page without text is refused.
    """
    # The prolog of XHTML would only make the parser warn.
    soup = BeautifulSoup(re.sub(r"\A\s*<\?xml[^>]*>", "", markup), "lxml")
    title = _title(soup)
    removed: Counter[str] = Counter()
    for element in soup.find_all(_REMOVED):
        if not element.decomposed:
            removed[element.name] += 1
            element.decompose()
    for head in soup.find_all("head"):
        head.decompose()
    text = _text(soup)
    if not text.strip():
        left_out = ", ".join(f"{n} {tag}" for tag, n in removed.items()) or "nothing"
        raise DocumentError(
            f"{name} is an HTML page without text (left out: {left_out}); save the page from a "
            "browser once it shows its text, and read that"
        )
    remarks: tuple[Remark, ...] = ()
    if removed:
        says = f"left out of the page: {', '.join(f'{n} {tag}' for tag, n in removed.items())}"
        remarks = (Remark("elements left out", says, "note", removed.total()),)
    return Content(text, title, {"removed_elements": dict(removed)}, remarks)


def _title(soup: BeautifulSoup) -> str:
    for name in ("title", "h1"):
        element = soup.find(name)
        if element and (title := " ".join(element.get_text().replace("\u00ad", "").split())):
            return title
    return ""


def _text(root: Tag) -> str:
    """Walk without recursion: unclosed tags nest thousands deep in real pages."""
    writer = _Writer()
    stack: list[tuple[PageElement, bool]] = [(root, False)]
    while stack:
        node, leaving = stack.pop()
        if isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):
                writer.text(str(node))
        elif isinstance(node, Tag) and leaving:
            writer.end(node)
        elif isinstance(node, Tag):
            writer.start(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.contents))
    return writer.finish()


class _Writer:
    """Builds the text line by line; ``_gap`` line ends are owed before the next one."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._line: list[str] = []
        self._prefix = ""
        self._gap = 0
        self._lists: list[int | None] = []  # next number of each open list; None: a dash
        self._preformatted = 0
        self._cells: list[bool] = []  # of each open cell: part of a table (or of a layout)?

    def start(self, tag: Tag) -> None:
        name = tag.name
        self._break(name)
        if name in _HEADINGS:
            self._prefix += "#" * int(name[1]) + " "
        elif name in ("ul", "menu"):
            self._lists.append(None)
        elif name == "ol":
            start = str(tag.get("start", "1"))
            self._lists.append(int(start) if start.isdecimal() else 1)
        elif name == "li":
            self._prefix = self._item_prefix()
        elif name == "pre":
            self._preformatted += 1
        elif name in ("td", "th"):
            self._start_cell(tag)
        elif name == "sup" and re.match(r"[-\u2212+]?\d", tag.get_text().strip()):
            self._line.append("^")

    def end(self, tag: Tag) -> None:
        name = tag.name
        if name == "pre":
            self._flush()
            self._preformatted -= 1
        elif name in _LISTS:
            self._lists.pop()
        elif name == "li" or name in _HEADINGS:
            self._flush()
            self._prefix = ""  # an empty item or heading
        elif name in ("td", "th") and not self._cells.pop():
            self._flush(gap=2)
        self._break(name)

    def text(self, text: str) -> None:
        if self._preformatted and not self._in_table_cell():
            self._line.append(text)
            return
        text = re.sub(r"[ \t\r\n\f\u00a0]+", " ", text.replace("\u00ad", ""))
        at_start = not self._line or self._line[-1].endswith(" ")
        text = text.lstrip(" ") if at_start else text
        if text:
            self._line.append(text)

    def finish(self) -> str:
        self._flush()
        return "".join(self._parts).strip("\n")

    def _in_table_cell(self) -> bool:
        return bool(self._cells) and self._cells[-1]

    def _break(self, name: str) -> None:
        gap = 2 if name in _PARAGRAPHS else 1 if name in _LINES else 0
        if not gap:
            return
        if self._in_table_cell():
            self.text(" ")
        elif name == "br" and self._preformatted:
            self._line.append("\n")
        elif name in _LISTS and self._lists:
            self._flush(gap=1)  # a list inside a list
        else:
            self._flush(gap=gap)

    def _item_prefix(self) -> str:
        if not self._lists:
            return "- "
        number = self._lists[-1]
        if number is not None:
            self._lists[-1] = number + 1
        return "  " * (len(self._lists) - 1) + ("- " if number is None else f"{number}. ")

    def _start_cell(self, cell: Tag) -> None:
        row = cell.find_parent("tr") or cell
        is_table_cell = row.find(_LAYOUT) is None
        if not is_table_cell:
            self._flush(gap=2)
        elif cell.find_previous_sibling(["td", "th"]) is not None:
            self._line = ["".join(self._line).rstrip(" "), " | "]
        self._cells.append(is_table_cell)

    def _flush(self, gap: int = 0) -> None:
        """End the line; a prefix with nothing after it waits for the text that it is for."""
        line = "".join(self._line)
        line = line.strip("\n") if self._preformatted else line.rstrip(" ")
        self._line.clear()
        if line.strip(" \n|"):
            if self._parts:
                self._parts.append("\n" * max(self._gap, 1))
            self._parts.append(self._prefix + line)
            self._prefix, self._gap = "", 0
        if not self._prefix:
            self._gap = max(self._gap, gap)
