"""The elements of a web page as people see them: from a parser's events to lines of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from lxml import etree

from selfextend_rag.documents.html.lines import Lines, Numbered, Table
from selfextend_rag.errors import DocumentError

_HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
_LISTS = ("ul", "menu", "dir", "ol")
_PREFORMATTED = ("pre", "textarea", "listing", "xmp", "plaintext")
_PARAGRAPHS = (
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "details", "div"),
    *("dialog", "dl", "fieldset", "figcaption", "figure", "footer", "form", "frame", "header"),
    *("hgroup", "hr", "iframe", "legend", "listing", "main", "nav", "noframes", "p", "plaintext"),
    *("pre", "search", "section", "summary", "table", "xmp", *_HEADINGS, *_LISTS),
)
_LINES = ("br", "dd", "dt", "li", "optgroup", "option", "text", "tr")
_GAPS = dict.fromkeys(_PARAGRAPHS, 2) | dict.fromkeys(_LINES, 1)  # line ends around elements
_STRUCTURE = dict.fromkeys((*_HEADINGS, *_LISTS, "dl", "blockquote"), 1) | {"table": 2, "pre": 2}
_PICTURES = ("audio", "canvas", "embed", "img", "image", "object", "svg", "video")
_PREFIXES = _HEADINGS | {"dd": ": "}
# What is written around an element; a box in a line is apart from the words around it.
_BOXES = (
    "button",
    "input",
    "meter",
    "output",
    "progress",
    "select",
    "textarea",
    "title",
    "desc",
    *_PICTURES,
)
_AROUND = dict.fromkeys(_BOXES, (" ", " ")) | dict.fromkeys(("del", "s", "strike"), ("~~", "~~"))
_AROUND |= {"q": ("“", "”"), "rt": ("(", ")"), "mrow": ("(", ")")}
_AROUND |= dict.fromkeys(("mi", "mn", "mo", "mtext"), (" ", " "))
_OPERATORS = ("msqrt", "mroot", "mfrac", "msub", "msup", "msubsup", "munder", "mover")
_AROUND |= {name: (f" {name[1:]}(", ")") for name in (*_OPERATORS, "munderover", "mtr")}
REMOVED = ("nav", "script", "style", "template")
_LEFT_OUT = ("annotation-xml", "iframe", "noframes", "rp", "script", "style")
# What an element without text is called by, and how that is written.
_NAMES = {"alt": "[image: {}]", "placeholder": "[hint: {}]", "aria-label": "{}", "title": "{}"}
_NAMELESS = ("base", "frame", "iframe", "link", "meta", "script", "style")
_ROLES = {"row": "tr", "cell": "td", "gridcell": "td", "columnheader": "th", "rowheader": "th"}
_ROLES |= {"table": "table", "grid": "table"}
_ENTERED = dict.fromkeys(_PREFORMATTED, "preformatted") | {"select": "select", "svg": "svg"}
_CONTENT = re.compile(r"""\bcontent\s*:\s*["'][^"'\\]*[^\W\d_]{2}""")
_HIDDEN = re.compile(r"display:none|visibility:hidden|(?:opacity|font-size):0(?![.\d])")
_BLOCK = re.compile(r"display:(?:block|flex|grid|list-item|table)")
# How a style numbers a list, in the forms of `numeral`.
_LIST_STYLE = re.compile(r"list-style(?:-type)?:[^;]*?\b((?:lower|upper|decimal|none)[\w-]*)")
# Numbers that a style sheet counts or writes in another form: of headings, lists, figures.
_COUNTED = re.compile(
    r"\bcontent\s*:[^;}]*\bcounters?\(|\blist-style(?:-type)?\s*:[^;}]*\b(?:low|upp)er-|@counter-style"
)
_FORMS = {"lower-alpha": "a", "lower-latin": "a", "upper-alpha": "A", "upper-latin": "A"}
_FORMS |= {"lower-roman": "i", "upper-roman": "I", "decimal-leading-zero": "01"}
_LABEL = "list-label"  # no attribute of web pages
# Superscripts that are apart from what they follow: numbers, and letters of formulas and notes,
# but not the ends of ordinals and abbreviations (2e, no, Mr, Mlle, TM).
_RAISED = re.compile(
    r"\s*(?:[-\u2212+]?\d|[b-cf-np-qt-zT*\u2020\u2021]\s*$|\w\s*[-\u2212+]|i[iv]+$)"
)
_END = "<!--end of the page-->"


def labelled_item(label: str) -> str:
    """Return the tag of an item that shows a label, part of a markup, in place of its number."""
    return f"""<li {_LABEL}="{label.replace('"', "&quot;")}">"""


class Page:
    """What a parser reports a page's elements to: keeps what people read, and counts the rest.

    Raises:
        DocumentError: elements are nested too deeply.
    """

    def __init__(self, markup: str, name: str, *, with_menus: bool = False) -> None:
        self.out = Lines()
        self.title = ""
        self.counts = Counter({"cut off": 1})  # what is left out or hidden; see `html.REMARKS`
        self.frames: list[str] = []  # in other files
        self.scripts: list[str] = []
        self._spare = 1_000_000 + 2 * len(markup)  # characters for what table cells span
        self._name, self._with_menus = name, with_menus
        self._open: list[list[Callable[[], object]]] = []  # what to do where each element ends
        self._inside = Counter[str]()  # how many elements are open that are hidden, or such
        self._skipping = self._link = 0  # elements open in one left out, and up to a link in it
        self._skipped: list[tuple[str, bool]] = []  # texts, and whether of a link
        self._tables: list[Table] = []
        self._formula_start, self._formula_text = 0, ""
        self._written = self._superscript = 0  # texts, and the one that starts a superscript
        self._subscript = -1  # the last text in one
        # The parser looks through all open elements wherever an end tag has no start.
        self._deepest = max(4_000, min(50_000, 1_000_000_000 // (markup.count("</") + 1)))
        self._feed(markup + _END)

    def text(self) -> str:
        """Return everything that is read."""
        return self.out.text().removesuffix(_END)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Called by the parser where an element starts."""
        if len(self._open) + self._skipping > self._deepest:
            raise DocumentError(
                f"{self._name} nests more than {self._deepest} elements in each other, as damaged "
                "pages do; save it again from a browser, and read that"
            )
        if self._skipping:
            self._skipping += 1
            self._link = self._link or self._skipping * (tag == "a")
            return
        self._open.append([])
        tag = _ROLES.get(attributes.get("role", ""), tag)
        if tag in _AROUND:
            self._around(*_AROUND[tag])
        gap = 1 if tag in _LISTS and self.out.lists else _GAPS.get(tag, 0)
        if attributes or tag in _PICTURES:
            gap = self._start_attributes(tag, attributes, gap)
        if tag == "br" and self._inside["preformatted"]:
            self.out.write("\n", preformatted=True)
        elif gap:
            self.out.flush(gap)
            self._at_end(lambda: self.out.flush(0 if tag == "br" else gap))
        if self._leaves_out(tag, attributes):
            self._skipping, self._link, self._skipped = 1, 0, []
            self._at_end(self._end_left_out, tag, attributes)
        else:
            self._start_element(tag, attributes)

    def end(self, tag: str) -> None:
        """Called by the parser where an element ends."""
        if self._skipping:
            self._link = 0 if self._link == self._skipping else self._link
            self._skipping -= 1
        if not self._skipping:
            for at_end in reversed(self._open.pop()):
                at_end()

    def data(self, text: str) -> None:
        """Called by the parser for text."""
        if self._skipping:
            self._skipped.append((text, self._link > 0))
        elif not text.isspace():
            self._write(text.replace("\u00ad", ""))
        else:
            self.out.write(text, preformatted=self._inside["preformatted"] > 0)

    def comment(self, text: str) -> None:
        """Called by the parser for a comment, or for an instruction, which starts with ``?``."""
        if text == _END[4:-3]:
            self.counts["cut off"] = 0
        elif not text.startswith("?"):
            self.counts["comments"] += 1

    def close(self) -> None:
        """Called by the parser at the end."""

    def _feed(self, markup: str) -> None:
        # The parser's own trees end 2,048 elements deep, its events do not. An error in one of
        # these stops it at the end of what it was fed.
        parser = etree.HTMLParser(target=self, huge_tree=True)
        for start in range(0, len(markup) or 1, 1 << 16):
            parser.feed(markup[start : start + (1 << 16)])
        parser.close()

    def _write(self, text: str) -> None:
        self._written += 1
        for state in ("hidden", "aria-hidden"):
            if self._inside[state]:
                self.counts[state] += len(text.split())
        if self._written == self._subscript + 1 and text[:1].isdigit() and self.out.line:
            text = f" {text}" if self.out.line[-1][-1:].isdigit() else text
        if self._written == self._superscript and _RAISED.match(text):
            text = "^" + text.lstrip()
        self.out.write(text, preformatted=self._inside["preformatted"] > 0)

    def _around(self, before: str, after: str) -> None:
        self.out.write(before)
        self._at_end(lambda: self.out.write(after))

    def _at_end(self, action: Callable[..., object], *arguments: object) -> None:
        self._open[-1].append(partial(action, *arguments))

    def _enter(self, state: str) -> None:
        self._inside[state] += 1
        self._at_end(self._inside.subtract, [state])

    def _start_attributes(self, tag: str, attributes: Mapping[str, str], gap: int) -> int:
        """Note what attributes say of an element; return the line ends around it."""
        style = "".join(attributes.get("style", "").lower().split())
        if "hidden" in attributes or _HIDDEN.search(style):
            self._enter("hidden")
        if "white-space:pre" in style:
            self._enter("preformatted")
        if attributes.get("aria-hidden") == "true":
            self._enter("aria-hidden")
        if "line-through" in style:
            self._around("~~", "~~")
        if tag in _PICTURES or not (tag in _NAMELESS or _NAMES.keys().isdisjoint(attributes)):
            self._at_end(self._end_named, tag, attributes, self._written)
        return max(gap, 1) if _BLOCK.search(style) else 0 if "display:inline" in style else gap

    def _leaves_out(self, tag: str, attributes: Mapping[str, str]) -> bool:
        return (
            tag in _LEFT_OUT
            or (tag == "nav" and not self._with_menus)
            or (tag == "template" and "shadowrootmode" not in attributes)
            or (tag == "title" and not self._inside["svg"])
            or (tag == "math" and "alttext" in attributes)
            or (tag == "annotation" and "tex" not in attributes.get("encoding", "").lower())
            or "katex-html" in attributes.get("class", "")
        )

    def _end_left_out(self, tag: str, attributes: Mapping[str, str]) -> None:
        text = "".join(part for part, _ in self._skipped)
        words = sum(len(part.split()) for part, _ in self._skipped)
        if tag == "title":
            title = text.removesuffix(_END).replace("\u00ad", "")
            self.title = self.title or " ".join(title.split())
        elif tag == "math":
            self._formula_text = attributes.get("alttext", "")
            self._write(self._formula_text)
        elif tag == "noframes":
            self._feed(text)
        elif tag == "iframe":
            self._frame(attributes)
        elif tag == "script" and attributes.get("type", "").startswith("math/tex"):
            self._write(text)
        elif tag in REMOVED:
            self.counts[tag] += 1
            self.scripts += [text] * (tag == "script")
            if tag == "style":
                self.counts["text in styles"] += len(_CONTENT.findall(text))
                self.counts["numbers in styles"] += len(_COUNTED.findall(text))
            linked = sum(len(part.split()) for part, in_link in self._skipped if in_link)
            menu = "menus" if words <= 2 * linked else "menus with text"
            self.counts[menu if tag == "nav" else f"in {tag}s"] += words

    def _start_element(self, tag: str, attributes: Mapping[str, str]) -> None:
        out = self.out
        if tag in _STRUCTURE:
            out.structure = max(out.structure, _STRUCTURE[tag])
        if tag in _ENTERED:
            self._enter(_ENTERED[tag])
        elif tag in _LISTS:
            out.lists.append(self._list(attributes) if tag == "ol" else None)
            self._at_end(out.lists.pop)
        elif tag in ("li", "option") or tag in _PREFIXES:
            self._at_end(self._end_prefixed)
            if tag == "li":
                out.item(attributes.get("value", ""), attributes.get(_LABEL))
            elif tag != "option":
                out.prefix += _PREFIXES[tag]
            elif self._inside["select"]:
                out.prefix += "[x] " if "selected" in attributes else "[ ] "
        elif tag == "dialog" and "open" not in attributes:
            self._enter("hidden")
        elif tag == "sub":  # a number at another one would be a third
            if out.line and out.line[-1][-1:].isdigit():
                self._write("_")
            self._at_end(lambda: setattr(self, "_subscript", self._written))
        elif tag == "sup":
            self._superscript = self._written + 1
            self._at_end(setattr, self, "_superscript", 0)
        elif tag == "optgroup":
            self._write(attributes.get("label", ""))
        elif tag == "input":
            self._input(attributes)
        elif tag == "frame":
            self._frame(attributes)
        elif tag == "math":
            self._formula_start = len(out.line)
        elif tag == "annotation":  # the formula as its author wrote it, in TeX
            del out.line[self._formula_start :]
        elif tag in ("table", "thead", "tbody", "tfoot", "tr", "td", "th"):
            self._start_table(tag, attributes)

    def _list(self, attributes: Mapping[str, str]) -> Numbered | None:
        """Return how a list is numbered; None where its first number is unknown."""
        style = _LIST_STYLE.search(attributes.get("style", "").lower())
        form = _FORMS.get(style[1], "1") if style else attributes.get("type", "1")
        start = re.fullmatch(r"\s*(-?\d{1,9})\s*", attributes.get("start", ""))
        if "reversed" in attributes and not start:
            self.counts["reversed lists"] += 1
            return None
        return Numbered(int(start[1]) if start else 1, form, -1 if "reversed" in attributes else 1)

    def _end_prefixed(self) -> None:
        self.out.flush()
        self.out.prefix = ""

    def _end_named(self, tag: str, attributes: Mapping[str, str], written: int) -> None:
        """Write what an element without text is called; count a picture that is not."""
        if self._written > written:
            return
        for key, form in _NAMES.items():
            if name := " ".join(attributes.get(key, "").split()):
                if name != self._formula_text:  # which a picture of it repeats
                    self._write(form.format(name))
                return
        if tag in _PICTURES and "alt" not in attributes:
            self.counts["pictures"] += 1

    def _input(self, attributes: Mapping[str, str]) -> None:
        kind, value = attributes.get("type", "").lower(), attributes.get("value", "")
        if kind in ("checkbox", "radio"):
            self._write("[x] " if "checked" in attributes else "[ ] ")
        elif kind in ("hidden", "password"):
            self.counts["hidden fields"] += 1
        elif value.strip():
            self._write(value)

    def _frame(self, attributes: Mapping[str, str]) -> None:
        """Read a page that is in a frame's attribute; name one that is not."""
        page, source = attributes.get("srcdoc", ""), attributes.get("src", "")
        if page and self._inside["frame"] < 8:  # they nest in the parser too
            self._inside["frame"] += 1
            self._feed(page)
            self._inside["frame"] -= 1
        elif page or not (self._inside["hidden"] or re.match(r"(?:about|javascript):|$", source)):
            self.frames.append(attributes.get("title") or source[:80] or "a frame in frames")

    def _start_table(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "table" or not self._tables:
            self._tables.append(Table(attributes.get("role") in ("presentation", "none")))
            self._at_end(self._end_table)
        table = self._tables[-1]
        if tag == "tr":
            table.sections[-1].append([])
        elif tag in ("td", "th"):
            columns = min(_number(attributes.get("colspan", "")), 1_000) or 1
            rows = min(_number(attributes.get("rowspan", "")), 65_534) or 65_534  # 0: to the end
            cell = Lines(columns, rows)
            table.headed = table.headed or tag == "th"
            table.add(cell)
            self._at_end(setattr, self, "out", self.out)
            self._at_end(cell.flush)
            self.out = cell
        elif tag != "table":
            table.sections.append([])
            self._at_end(table.sections.append, [])

    def _end_table(self) -> None:
        self.out.flush()
        table = self._tables.pop()
        self._spare = table.write(self.out, self._spare)
        self.counts["spans ignored"] += table.ignored


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"\s*\d{1,9}\s*", text) else 1
