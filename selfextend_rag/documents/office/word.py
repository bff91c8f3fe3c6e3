"""Word files (.docx): made HTML by mammoth, after what it leaves out is put where it reads it."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from html import escape
from typing import Any

from lxml import etree

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.html import labelled_item, read_html
from selfextend_rag.documents.office.numbers import MARKED, WordNumbers
from selfextend_rag.documents.office.ooxml import (
    WORD,
    graphics,
    lines,
    replace_with,
    run_of,
    simplified,
)
from selfextend_rag.documents.office.package import Package, at, local

_LIKE = {"br": "br", "cr": "br", "ptab": "tab", "dstrike": "strike"}
# What mammoth reads; it leaves out whatever else there is, with all the text inside.
_READ = {
    *("document", "body", "p", "r", "t", "tbl", "tr", "tc", "hyperlink", "ins", "moveTo", "sdt"),
    *("sdtContent", "customXml", "smartTag", "pict", "txbxContent", "footnotes", "footnote"),
    *("endnotes", "endnote", "comments", "comment"),
}
_MOST_ELEMENTS = 200_000  # over which mammoth takes more than 10 s, and 2 KB for each


def read_docx(data: bytes, name: str) -> Content:
    """Return the text of a Word file: body, notes, comments, then page headers and footers.

    Equations are written in one line, and charts and diagrams as their labels and values. Deleted
    text, pictures and embedded objects are remarked on, and words that did not come out counted.

    Raises:
        DocumentError: it is damaged, encrypted or without text, or mammoth is not installed.
    """
    package, around = Package(data, name), dict[str, None]()
    with package.reading():
        main = package.main("word/document.xml")
        parts, numbers = dict[str, Any](), WordNumbers(package, main)
        for kind, member in (("body", main), *package.relations(main).values()):
            if kind in ("body", "footnotes", "endnotes", "comments"):
                parts[member] = _prepared(package, member, numbers)
            elif kind in ("header", "footer") and (
                said := lines(_prepared(package, member, numbers))
            ):
                around["\n".join((f"Page {kind}:", *said))] = None
        source = "\n".join((*(line for root in parts.values() for line in lines(root)), *around))
        source = MARKED.sub(r"\1 ", source)
        page = Content(source)
        if source and (markup := _markup(package, parts)):
            page = read_html(f"{markup}<pre>{escape(chr(10).join(around))}</pre>", name)
        package.counts["words"] = _missing(source, page.text)
        package.add(page.text)
        return package.content(page.title)


def _markup(package: Package, parts: dict[str, Any]) -> str:
    """Return the file as HTML, "" where mammoth can't do it."""
    import mammoth

    if sum(1 for root in parts.values() for _ in root.iter()) <= _MOST_ELEMENTS:
        archive, style = package.copy(parts), "comment-reference => sup"
        # It raises whatever it runs into in an unusual file; the text is there without it.
        with suppress(Exception):
            result = mammoth.convert_to_html(
                archive, style_map=style, include_embedded_style_map=False
            )
            package.counts["symbols"] = sum("w:sym" in said.message for said in result.messages)
            markup = re.sub(r' ?<a href="#[^"]*">↑</a>', "", result.value)
            item = f"<li>{MARKED.pattern}"
            markup = re.sub(item, lambda found: labelled_item(found[1]), markup)
            return MARKED.sub(r"\1 ", markup)
    package.counts["layout"] = 1
    return ""


def _prepared(package: Package, member: str, numbers: WordNumbers) -> Any:
    """Return a part of a Word file with its text where mammoth reads it."""
    root, counts = simplified(package, member), package.counts
    for change in list(root.iter("{*}del", "{*}moveFrom", "{*}ins")):
        counts["insertions"] += local(change) == "ins"
        if local(change) != "ins" and local(change.getparent()) not in ("rPr", "trPr"):
            counts["deletions"] += local(change) == "del"
            replace_with(change)
    for graphic in list(root.iter("{*}drawing", "{*}pict", "{*}object")):
        labels = (
            node.get(key)
            for key in ("descr", "string", "alt")
            for node in graphic.iter("{*}docPr", "{*}textpath", "{*}shape")
        )
        said = [*filter(None, labels), *graphics(graphic, package, member)]
        boxes = etree.Element(f"{WORD}pict")
        boxes.extend([*graphic.iter("{*}txbxContent")])
        replace_with(graphic, *([run_of("\n".join(("", *said, "")))] if said else ()), boxes)
    hidden = root.iter("{*}vanish")
    counts["hidden text"] += sum(at(node, "val") not in ("0", "false") for node in hidden)
    for node in _codes_of_fields(root):
        node.text = ""
    for node in list(root.iter()):
        _rewrite(node, counts)
    for paragraph in root.iter("{*}p"):
        label = numbers.label(paragraph)
        if label is not None:
            paragraph.find("{*}pPr").addnext(run_of(f"\ufdd0{label}\ufdd1"))
    return root


def _codes_of_fields(root: Any) -> list[Any]:
    """Return the texts inside the code of a field, which a program computes and does not show."""
    open_fields: list[bool] = []  # whether the result has begun
    inside = []
    for node in root.iter("{*}fldChar", "{*}t"):
        kind = at(node, "fldCharType")
        if kind == "begin":
            open_fields.append(False)
        elif kind and not open_fields:
            return []  # damaged
        elif kind == "separate":
            open_fields[-1] = True
        elif kind == "end":
            open_fields.pop()
        elif not all(open_fields):
            inside.append(node)
    return [] if open_fields else inside


def _rewrite(node: Any, counts: Counter[str]) -> None:
    """Give an element that mammoth leaves out a form that it reads."""
    name = local(node)
    counts["inserted files"] += name in ("altChunk", "subDoc")
    if name in _LIKE:  # mammoth leaves out breaks of pages and columns, and joins the words there
        node.tag = f"{WORD}{_LIKE[name]}"
        if name == "br":
            node.attrib.clear()
    elif name == "gridBefore":  # columns that a row leaves out
        row = node.getparent().getparent()
        for _ in range(min(int(at(node, "val")), 63)):  # as many as Word allows
            row.insert(list(row).index(node.getparent()) + 1, _cell())
    elif name == "ruby":  # the reading comes first
        reading = node.find("{*}rt")
        if reading is not None and (text := "".join(lines(reading))):
            replace_with(reading)
            node.append(run_of(f"({text})"))
        node.tag = f"{WORD}smartTag"
    elif name == "hyperlink":  # links are not followed, and some lead nowhere
        node.attrib.clear()
    elif name == "ddList":  # a form's list, whose field has no text
        chosen = [int(at(choice, "val")) for choice in node.iterfind("{*}result")]
        entries = [at(entry, "val") for entry in node.iterfind("{*}listEntry")]
        node.getparent().getparent().addnext(run_of(entries[chosen[0] if chosen else 0])[0])
    elif name not in _READ and next(node.iter("{*}t"), None) is not None:
        node.tag = f"{WORD}smartTag"  # which holds anything


def _cell() -> Any:
    cell = etree.Element(f"{WORD}tc")
    etree.SubElement(cell, f"{WORD}p")
    return cell


def _missing(source: str, text: str) -> int:
    """Return how many words of a source a text lacks, however both cut them, in any order."""
    absent = Counter(re.findall(r"\w+", source)) - Counter(re.findall(r"\w+", text))
    theirs, ours = re.sub(r"\W", "", source), re.sub(r"\W", "", text)
    # Only few are looked up in the joined texts: each costs a pass over them.
    joined = {word: max(0, theirs.count(word) - ours.count(word)) for word in [*absent][:200]}
    return sum(min(n, joined.get(word, n)) for word, n in absent.items())
