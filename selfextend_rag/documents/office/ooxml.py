"""What Word, PowerPoint and Excel files have alike: paragraphs, equations, charts, diagrams."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from lxml import etree

from selfextend_rag.documents.office.package import Package, at, local

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_BREAKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# What is written before a part of an equation; the part is in brackets if it is no word.
_SIGNS = {"sup": "^", "sub": "_", "lim": "_", "den": "/", "num": "", "deg": "", "rad e": "√"}


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
        replace_with(alternatives, *(child for form in forms[:1] for child in form))
    for equation in list(root.iter("{*}oMath")):
        replace_with(equation, run_of(" ".join(_equation(equation).split())))
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


def run_of(text: str) -> Any:
    """Return a run of text as Word has it, with a break at each line end."""
    element = etree.Element(f"{WORD}r")
    for number, line in enumerate(text.split("\n")):
        if number:
            etree.SubElement(element, f"{WORD}br")
        etree.SubElement(element, f"{WORD}t").text = line
    return element


def replace_with(element: Any, *others: Any) -> None:
    for other in reversed(others):
        element.addnext(other)
    element.getparent().remove(element)
