"""The numbers of list items and headings, which office files leave to the program to count."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfextend_rag.documents.html import numeral
from selfextend_rag.documents.office.package import Package, at

MARKED = re.compile("\ufdd0([^\ufdd1]*)\ufdd1")
"""A number at the start of a paragraph, between two codes that are no characters."""
_DEEPEST = 10  # level of any format; a file can state any number
OTHER = "?"  # a form of numbers that is written as 1, 2, 3, which is remarked
# Forms of `numeral` by their names in Word, and by the starts of those in PowerPoint.
_FORMS = {
    **{"decimal": "1", "decimalZero": "01", "lowerLetter": "aa", "upperLetter": "AA", "none": ""},
    **{"lowerRoman": "i", "upperRoman": "I", "arabic": "1", "alphaLc": "aa", "alphaUc": "AA"},
    **{"romanLc": "i", "romanUc": "I"},
}
_AROUND = {"ParenBoth": "(%{})", "ParenR": "%{})", "Plain": "%{}", "Minus": "- %{} -"}


@dataclass(frozen=True, slots=True)
class Level:
    """How the items of a level are numbered.

    Args:
        text: what is shown, with ``%1`` for the number of the first level; None: a bullet.
        form: of its own number, as `numeral` has them.
        start: the first number.
        plain: numbers of other levels are written 1, 2, 3.
        restart: the count starts again after an item of a level below this one.
    """

    text: str | None
    form: str = "1"
    start: int = 1
    plain: bool = False
    restart: int = 99


class Count:
    """The last number of each level of a list, the first of which is 0."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def next(self, levels: Mapping[int, Level], level: int, start: int | None = None) -> str | None:
        """Return what the next item of a level shows for its number; None: a bullet."""
        own = levels.get(level, Level(None))
        for deeper in [n for n in self._last if n > level]:
            if level < levels.get(deeper, own).restart:
                del self._last[deeper]
        for upper in range(min(level, _DEEPEST)):
            self._last.setdefault(upper, levels.get(upper, own).start)
        self._last[level] = self._last.get(level, own.start - 1) + 1 if start is None else start

        def number(place: re.Match[str]) -> str:
            of = int(place[1]) - 1
            form = "1" if own.plain and of != level else levels.get(of, own).form
            return numeral(self._last.get(of, 1), form)

        return None if own.text is None else re.sub("%([1-9])", number, own.text)


class WordNumbers:
    """The numbers of a Word file's paragraphs, asked for in their order."""

    def __init__(self, package: Package, main: str) -> None:
        self._counts, members = package.counts, dict(package.relations(main).values())
        parts = (members.get(kind, "") for kind in ("styles", "numbering"))
        roots = [package.xml(part) for part in parts if part in package.members]
        self._styles = {at(s, "styleId"): s for root in roots for s in root.iterfind("{*}style")}
        self._lists = {at(n, "numId"): n for root in roots for n in root.iterfind("{*}num")}
        self._kinds = {
            at(n, "abstractNumId"): n for root in roots for n in root.iterfind("{*}abstractNum")
        }
        self._count = dict[str, Count]()
        self._levels = dict[str, tuple[str, dict[int, Level], dict[str, int]]]()
        self._started = set[tuple[str, int]]()

    def label(self, paragraph: Any) -> str | None:
        """Return what a paragraph shows for its number, None where it has none."""
        properties = paragraph.find("{*}pPr")
        if properties is None or properties.find("{*}rPr/{*}del") is not None:
            return None
        style = _value(properties, "pStyle")
        number, level = _value(properties, "numPr/{*}numId"), _value(properties, "numPr/{*}ilvl")
        seen = self._styles.get(style)
        for _ in range(20):  # styles that are based on others
            if number or seen is None:
                break
            number = _value(seen, "pPr/{*}numPr/{*}numId")
            level = level or _value(seen, "pPr/{*}numPr/{*}ilvl")
            seen = self._styles.get(_value(seen, "basedOn"))
        if number not in self._lists:
            return None
        kind, levels, starts = self._list(number)
        own = int(level or starts.get(f"style {style}", 0))
        first = (number, own) not in self._started
        self._started.add((number, own))
        start = starts.get(str(own)) if first else None
        shown = self._count.setdefault(kind, Count()).next(levels, own, start)
        self._counts["list numbers"] += shown is not None and levels[own].form == OTHER
        return shown

    def _list(self, number: str) -> tuple[str, dict[int, Level], dict[str, int]]:
        """Return a list's kind, with which it shares its count, its levels, and their starts."""
        if number not in self._levels:
            own, starts = self._lists[number], dict[str, int]()
            kind = _value(own, "abstractNumId")
            style = self._styles.get(_value(self._kinds.get(kind, own), "numStyleLink"))
            if style is not None:
                linked = self._lists.get(_value(style, "pPr/{*}numPr/{*}numId"))
                kind = kind if linked is None else _value(linked, "abstractNumId")
            nodes = {
                at(node, "ilvl"): node
                for place in (self._kinds.get(kind, own), *own.iterfind("{*}lvlOverride"))
                for node in place.iterfind("{*}lvl")
            }
            for override in own.iterfind("{*}lvlOverride"):
                if start := _value(override, "startOverride"):
                    starts[at(override, "ilvl")] = int(start)
            for level, node in nodes.items():
                starts[f"style {_value(node, 'pStyle')}"] = int(level)
            levels = {int(level): _level(node) for level, node in nodes.items()}
            self._levels[number] = kind, levels, starts
        return self._levels[number]


def _value(element: Any, path: str) -> str:
    node = element.find(f"{{*}}{path}")
    return "" if node is None else at(node, "val")


def _level(node: Any) -> Level:
    names = [at(form, "val") for form in node.iter("{*}numFmt")]  # of alternatives the last
    form = names[-1] if names else "decimal"
    restart = _value(node, "lvlRestart")
    return Level(
        None if form == "bullet" else _value(node, "lvlText"),
        _FORMS.get(form, OTHER),
        int(_value(node, "start") or 0),
        node.find("{*}isLgl") is not None and _value(node, "isLgl") not in ("0", "false"),
        int(restart) if restart else 99,
    )


def number_slides(root: Any, counts: Counter[str]) -> None:
    """Write the numbers of a slide's paragraphs into their texts."""
    for body in root.iter("{*}txBody"):
        count, levels = Count(), dict[int, Level]()
        for paragraph in body.iterfind("{*}p"):
            text = next(paragraph.iter("{*}t"), None)
            if text is None:
                continue
            own = paragraph.find("{*}pPr")
            level = int(own.get("lvl", 0)) if own is not None else 0
            listed = body.find(f"{{*}}lstStyle/{{*}}lvl{level + 1}pPr")
            marks = [
                p.find(f"{{*}}{name}")
                for p in (own, listed)
                if p is not None
                for name in ("buAutoNum", "buNone", "buChar", "buBlip")
            ]
            mark = next((mark for mark in marks if mark is not None), None)
            before = levels.get(level)
            levels[level] = Level(None) if mark is None else _slide_level(mark, level)
            again = levels[level].start if before != levels[level] else None
            shown = count.next(levels, level, again)
            if shown is not None:
                text.text = f"{shown} {text.text or ''}"
                counts["list numbers"] += levels[level].form == OTHER


def _slide_level(mark: Any, level: int) -> Level:
    kind = mark.get("type")
    if kind is None:
        return Level(None)
    form = next((form for name, form in _FORMS.items() if kind.startswith(name)), OTHER)
    around = next((text for end, text in _AROUND.items() if kind.endswith(end)), "%{}.")
    return Level(around.format(level + 1), form, int(mark.get("startAt", 1)))
