"""PowerPoint files (.pptx): slides in the order of the show, and what is behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from selfextend_rag.documents.content import Content
from selfextend_rag.documents.office.numbers import number_slides
from selfextend_rag.documents.office.ooxml import graphics, lines, simplified
from selfextend_rag.documents.office.package import Package, at

_SHAPES = ("{*}sp", "{*}pic", "{*}graphicFrame", "{*}cxnSp")


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
