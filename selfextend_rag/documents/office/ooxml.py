"""Word and PowerPoint files (.docx, .pptx), and what Excel files have of their XML.

Word files are made HTML by mammoth, after what mammoth leaves out is put where it reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from html import escape
from typing import Any

from lxml import etree

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.html import labelled_item, read_html
from selfextend_rag.documents.office.numbers import MARKED, WordNumbers, number_slides
from selfextend_rag.documents.office.package import Package, at, local

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_BREAKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_LIKE = {"br": "br", "cr": "br", "ptab": "tab", "dstrike": "strike"}
# What is written before a part of an equation; the part is in brackets if it is no word.
_SIGNS = {"sup": "^", "sub": "_", "lim": "_", "den": "/", "num": "", "deg": "", "rad e": "√"}
# What mammoth reads; it leaves out whatever else there is, with all the text inside.
_READ = {
    *("document", "body", "p", "r", "t", "tbl", "tr", "tc", "hyperlink", "ins", "moveTo", "sdt"),
    *("sdtContent", "customXml", "smartTag", "pict", "txbxContent", "footnotes", "footnote"),
    *("endnotes", "endnote", "comments", "comment"),
}
_SHAPES = ("{*}sp", "{*}pic", "{*}graphicFrame", "{*}cxnSp")
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
            _replace(change)
    for graphic in list(root.iter("{*}drawing", "{*}pict", "{*}object")):
        labels = (
            node.get(key)
            for key in ("descr", "string", "alt")
            for node in graphic.iter("{*}docPr", "{*}textpath", "{*}shape")
        )
        said = [*filter(None, labels), *graphics(graphic, package, member)]
        boxes = etree.Element(f"{_W}pict")
        boxes.extend([*graphic.iter("{*}txbxContent")])
        _replace(graphic, *([_run("\n".join(("", *said, "")))] if said else ()), boxes)
    hidden = root.iter("{*}vanish")
    counts["hidden text"] += sum(at(node, "val") not in ("0", "false") for node in hidden)
    for node in _codes_of_fields(root):
        node.text = ""
    for node in list(root.iter()):
        _rewrite(node, counts)
    for paragraph in root.iter("{*}p"):
        label = numbers.label(paragraph)
        if label is not None:
            paragraph.find("{*}pPr").addnext(_run(f"\ufdd0{label}\ufdd1"))
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
        node.tag = f"{_W}{_LIKE[name]}"
        if name == "br":
            node.attrib.clear()
    elif name == "gridBefore":  # columns that a row leaves out
        row = node.getparent().getparent()
        for _ in range(min(int(at(node, "val")), 63)):  # as many as Word allows
            row.insert(list(row).index(node.getparent()) + 1, _cell())
    elif name == "ruby":  # the reading comes first
        reading = node.find("{*}rt")
        if reading is not None and (text := "".join(lines(reading))):
            _replace(reading)
            node.append(_run(f"({text})"))
        node.tag = f"{_W}smartTag"
    elif name == "hyperlink":  # links are not followed, and some lead nowhere
        node.attrib.clear()
    elif name == "ddList":  # a form's list, whose field has no text
        chosen = [int(at(choice, "val")) for choice in node.iterfind("{*}result")]
        entries = [at(entry, "val") for entry in node.iterfind("{*}listEntry")]
        node.getparent().getparent().addnext(_run(entries[chosen[0] if chosen else 0])[0])
    elif name not in _READ and next(node.iter("{*}t"), None) is not None:
        node.tag = f"{_W}smartTag"  # which holds anything


def _cell() -> Any:
    cell = etree.Element(f"{_W}tc")
    etree.SubElement(cell, f"{_W}p")
    return cell


def _missing(source: str, text: str) -> int:
    """Return how many words of a source a text lacks, however both cut them, in any order."""
    absent = Counter(re.findall(r"\w+", source)) - Counter(re.findall(r"\w+", text))
    theirs, ours = re.sub(r"\W", "", source), re.sub(r"\W", "", text)
    # Only few are looked up in the joined texts: each costs a pass over them.
    joined = {word: max(0, theirs.count(word) - ours.count(word)) for word in [*absent][:200]}
    return sum(min(n, joined.get(word, n)) for word, n in absent.items())


def read_pptx(data: bytes, name: str) -> Content:
    """Return the text of every slide in the order of the show, with ``slide N`` as its place.

    The title comes first, then the shapes in the order of the file, in which screen readers take
    them, notes and comments; then what is behind all slides. Tables, charts, diagrams and
    equations are text; hidden slides are marked; pictures and embedded objects are remarked on.

    Raises:
        DocumentError: it is damaged, encrypted or without text.
    """
    package, first = Package(data, name), ""
    with package.reading():
        main = package.main("ppt/presentation.xml")
        slides, behind = package.relations(main), dict[str, list[str]]()
        listed = package.xml(main).findall("{*}sldIdLst/{*}sldId")
        for number, node in enumerate(listed, 1):
            place, member = f"slide {number}", slides[at(node, "id")][1]
            pictures = package.counts["pictures"]
            root = simplified(package, member)
            number_slides(root, package.counts)
            hidden = (node.get("hidden") for node in root.iter("{*}cNvPr"))
            package.counts["hidden text"] += sum(state in ("1", "true") for state in hidden)
            shapes = [*root.iter(*_SHAPES)]
            titles = dict.fromkeys(s for s in shapes if _place(s) in ("title", "ctrTitle"))
            title = " ".join(line for shape in titles for line in lines(shape))
            said = [t for s in shapes if s not in titles for t in _shape(s, package, member)]
            for kind, part in package.relations(member).values():
                if kind == "notesSlide":
                    shapes = [*simplified(package, part).iter(*_SHAPES)]
                    notes = [line for shape in shapes for line in _shape(shape, package, part)]
                    said += ("Notes:", *notes) if notes else ()
                elif kind == "comments":
                    comments = package.xml(part)
                    texts = [node.text or "" for node in comments.iter("{*}text")] + lines(comments)
                    said += (f"Comment: {text}" for text in texts)
                elif kind == "slideLayout" and part not in behind:
                    behind[part] = [*_behind(package, part)]
            silent = not title and not said and package.counts["pictures"] > pictures
            package.counts["slides without text"] += silent
            package.head(place, root.get("show") in ("0", "false"), title)
            package.add("\n".join(said), place)
            first = first or title
        background = dict.fromkeys(line for part in behind.values() for line in part)
        package.add("\n".join(background), "slide background")
        return package.content(first, slides=len(listed))


def _place(shape: Any) -> str:
    """Return which place of its layout a shape fills; "" for a shape of its own."""
    place = shape.find("*/{*}nvPr/{*}ph")
    return "" if place is None else str(place.get("type", "body"))


def _shape(shape: Any, package: Package, member: str) -> Iterator[str]:
    """Yield the lines of a shape; a slide's number, and its picture among notes, are not text."""
    if _place(shape) not in ("sldNum", "sldImg"):
        rows = [[" ".join(lines(c)) for c in row.iterfind("{*}tc")] for row in shape.iter("{*}tr")]
        yield from (" | ".join(cells) for cells in rows if any(cells))
        yield from () if rows else lines(shape)
        yield from graphics(shape, package, member)
        yield from filter(None, [node.get("descr") for node in shape.iterfind("{*}nvPicPr/*")])


def _behind(package: Package, layout: str) -> Iterator[str]:
    """Yield what a layout and its master show themselves, besides the places for text."""
    masters = (to for kind, to in package.relations(layout).values() if kind == "slideMaster")
    for member in (layout, *masters):
        for shape in simplified(package, member).iter(*_SHAPES):
            yield from () if _place(shape) else _shape(shape, package, member)


def lines(root: Any) -> list[str]:
    """Return the lines of every paragraph under an element, those of text boxes apart."""
    paragraphs: dict[Any, list[str]] = {}
    for node in root.iter("{*}t", *(f"{{*}}{name}" for name in _BREAKS)):
        name = local(node)
        if name != "tab" or local(node.getparent()) == "r":  # others say where tabs stop
            owner = next(node.iterancestors("{*}p"), root)
            paragraphs.setdefault(owner, []).append(_BREAKS.get(name) or node.text or "")
    joined = "\n".join("".join(parts) for parts in paragraphs.values())
    return [line for part in joined.split("\n") if (line := " ".join(part.split()))]


def simplified(package: Package, member: str) -> Any:
    """Return the root of a member with equations as text and pictures counted.

    Of alternative forms it has the first, which current programs show: the others repeat its
    text, or lack it.
    """
    root = package.xml(member)
    for alternatives in list(root.iter("{*}AlternateContent")):
        forms = [*alternatives.iterfind("{*}Choice"), *alternatives.iterfind("{*}Fallback")]
        _replace(alternatives, *(child for form in forms[:1] for child in form))
    for equation in list(root.iter("{*}oMath")):
        _replace(equation, _run(" ".join(_equation(equation).split())))
    fills = root.iter("{*}blipFill", "{*}fill")  # of shapes, slides and pages
    package.counts["pictures"] += sum(1 for _ in root.iter("{*}pic", "{*}imagedata"))
    package.counts["pictures"] += sum(
        local(fill.getparent()) != "pic" and bool(at(fill, "id") or local(fill) == "blipFill")
        for fill in fills
    )
    package.counts["form controls"] += sum(1 for _ in root.iter("{*}control"))
    package.counts["embedded objects"] += sum(1 for _ in root.iter("{*}OLEObject", "{*}oleObj"))
    return root


def _equation(node: Any) -> str:
    """Return an equation in one line, such as ``(x^2+1)/n``."""
    name = local(node)
    settings = {local(p): at(p, "val") for p in node.iterfind(f"{{*}}{name}Pr/*")}
    between = {"d": settings.get("sepChr", "|"), "m": "; ", "eqArr": "; ", "mr": ", "}.get(name, "")
    text = between.join(filter(None, map(_equation, node))) or (node.text or "") * (name == "t")
    if name in ("acc", "bar") and text:
        return text + ("\u0305" if name == "bar" else settings.get("chr", "\u0302"))
    sign = _SIGNS.get(f"{local(node.getparent())} {name}", _SIGNS.get(name))
    if name == "d":
        return f"{settings.get('begChr', '(')}{text}{settings.get('endChr', ')')}"
    if name in ("nary", "fName"):
        return f"{settings.get('chr', '∫')}{text} " if name == "nary" else f"{text} "
    if sign is not None and text:
        return sign + (text if re.fullmatch(r"\w+", text) else f"({text})")
    return text


def graphics(element: Any, package: Package, member: str) -> Iterator[str]:
    """Yield the lines of the charts and diagrams that an element of a member shows."""
    relations = package.relations(member)
    for node in element.iter("{*}chart", "{*}relIds"):
        _, part = relations.get(at(node, "dm") or at(node, "id"), ("", ""))
        if part in package.members:
            root = simplified(package, part)
            yield from lines(root)
            # Titles may be those of a cell.
            yield from (n.text for n in root.iterfind(".//{*}title/{*}tx//{*}v") if n.text)
            yield from map(_series, root.iter("{*}ser", "{*}strDim", "{*}numDim"))
            for kind, drawing in package.relations(part).values():
                if kind == "chartUserShapes":
                    yield from lines(simplified(package, drawing))
        else:
            package.counts["embedded objects"] += 1


def _series(series: Any) -> str:
    """Return the name of a chart's series, then its labels and values as last drawn."""
    name = "".join(node.text or "" for node in series.iterfind("{*}tx//{*}v"))
    points: dict[str, list[str]] = {}
    for point in (p for part in series if local(part) != "tx" for p in part.iter("{*}pt")):
        text = point.findtext("{*}v") or point.text or ""
        with suppress(ValueError, OverflowError):
            text = f"{float(text):.15g}"  # 4.3 for 4.2999999999999998
            if re.search("y|d.*m|m.*d", point.getparent().findtext("{*}formatCode", "")):
                text = f"{datetime(1899, 12, 30) + timedelta(float(text)):%Y-%m-%d}"
        points.setdefault(point.get("idx", ""), []).append(text)
    return f"{name}: {'; '.join(map(' = '.join, points.values()))}".removeprefix(": ")


def _run(text: str) -> Any:
    """Return a run of text as Word has it, with a break at each line end."""
    element = etree.Element(f"{_W}r")
    for number, line in enumerate(text.split("\n")):
        if number:
            etree.SubElement(element, f"{_W}br")
        etree.SubElement(element, f"{_W}t").text = line
    return element


def _replace(element: Any, *others: Any) -> None:
    for other in reversed(others):
        element.addnext(other)
    element.getparent().remove(element)
