"""Zipped office files: XML members, read within limits and without anything from outside."""

from __future__ import annotations

import io
import lzma
import posixpath
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lxml import etree

from selfextend_rag.documents.content import Content, Location, Severity, counted, remarks_on
from selfextend_rag.errors import DocumentError

_MOST_UNPACKED = 256 << 20
_MOST_RATIO, _RATIO_FROM = 300, 8 << 20  # sheets of equal rows reach 200, bombs 1,000
_MOST_MARKUP = 3_000_000  # "<" and "=" in a member: elements and attributes, of some 200 bytes
# What damaged archives, XML and values raise; of absent elements TypeError and AttributeError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, etree.LxmlError, EOFError, OSError),
    *(LookupError, ValueError, RuntimeError, ArithmeticError, TypeError, AttributeError),
)
# Of Microsoft's programs, and of OpenDocument's, where script-lb.xml is a list of them.
_MACROS = re.compile(r".*vbaProject\.bin|Basic/.+/(?!script-l[bc]\.xml).+\.xml|Scripts/.+\.\w+")
# What is counted in office files, how severe it is and what became of it.
_REMARKS: dict[str, tuple[Severity, str]] = {
    "hidden": ("note", "hidden slide{s} or sheet{s} {are} in the text"),
    "hidden rows": ("note", "hidden row{s} or column{s} {are} in the text"),
    "hidden text": ("note", "hidden passage{s} {are} in the text"),
    "insertions": ("note", "inserted passage{s} (tracked changes) {are} in the text"),
    "macros": ("note", "file{s} of macros, which are programs, {were} left out"),
    "deletions": ("warning", "deleted passage{s} (tracked changes) {were} left out"),
    "embedded objects": ("warning", "embedded object{s} {were} left out"),
    "form controls": ("warning", "form control{s} {were} left out; labels may be in the text"),
    "formulas": ("warning", "formula{s} without a computed value {are} in the text as such"),
    "layout": (
        "warning",
        "layout{s} {were} too unusual: headings, lists and tables are plain lines",
    ),
    "list numbers": ("warning", "number{s} of lists in an unusual form {are} written 1, 2, 3"),
    "pictures": ("warning", "picture{s} {were} left out; text in pictures is not read"),
    "inserted files": ("loss", "document{s} inserted as files {were} left out"),
    "repetitions": ("loss", "repetition{s} of a row or a cell {were} left out"),
    "slides without text": ("loss", "slide{s} {have} pictures and no text"),
    "symbols": ("loss", "symbol{s} of fonts of their own {are} missing or unreadable"),
    "words": ("loss", "word{s} of the file did not come out"),
}


class Package:
    """A zipped office file: its XML members, its text so far, and counts of what that lacks."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self.counts = name, Counter[str]()
        self._unpacked, self._text, self._length = 0, list[str](), 0
        self._relations = dict[str, dict[str, tuple[str, str]]]()
        self._locations, self._said = list[Location](), False
        self._next: tuple[str, int | None] = ("", None)
        with self.reading():
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        self.members = {info.filename: info for info in self._zip.infolist()}
        self.counts["macros"] = sum(map(bool, map(_MACROS.fullmatch, self.members)))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make what damaged files raise a refusal."""
        try:
            yield
        except DocumentError:
            raise
        except ImportError as error:
            says = f"{self.name} is not read without {error.name}"
            raise DocumentError(f'{says}; pip install "selfextend-rag[office]"') from error
        except _DAMAGE as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise DocumentError(
                f"{self.name} is a damaged or unusual office file ({reason}); open it in an office "
                "program, save it again and read that"
            ) from error

    def read(self, member: str) -> bytes:
        """Return the bytes of a member, within the limits; it ends at the size that it states."""
        info = self.members[member]
        size = info.file_size
        self._unpacked += size
        if info.flag_bits & 1:
            raise DocumentError(f"{self.name} is encrypted with a password; save it without one")
        bomb = size > _RATIO_FROM and size > _MOST_RATIO * info.compress_size
        bomb = bomb or self._unpacked > _MOST_UNPACKED
        data = b"" if bomb else self._zip.read(info)
        if bomb or data.count(b"<") + data.count(b"=") > _MOST_MARKUP:
            raise DocumentError(
                f"{self.name} unpacks to more than is read of an office file ({member}: {size} "
                f"bytes out of {info.compress_size}); split it, or save what it says as text"
            )
        return data

    def xml(self, member: str) -> Any:
        """Return the root element of a member: no DTD, no entities, at most 256 levels."""
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True
        )
        root = etree.fromstring(self.read(member), parser)
        if root.getroottree().docinfo.doctype:
            raise ValueError("it declares a document type, which no office file does")
        return root

    def main(self, usual: str) -> str:
        """Return the member that the others belong to."""
        mains = (to for kind, to in self.relations("").values() if kind == "officeDocument")
        return next((member for member in mains if member in self.members), usual)

    def relations(self, member: str) -> dict[str, tuple[str, str]]:
        """Return by id the type and the member of each relation; what is outside is not opened."""
        folder, base = posixpath.split(member)
        rels, found = (
            posixpath.join(folder, f"_rels/{base}.rels"),
            self._relations.setdefault(member, {}),
        )
        for node in self.xml(rels) if rels in self.members and not found else ():
            to = posixpath.normpath(posixpath.join("/", folder, node.get("Target", "")))[1:]
            if node.get("TargetMode") != "External":
                found[node.get("Id", "")] = (node.get("Type", "").rpartition("/")[2], to)
        return found

    def copy(self, changed: Mapping[str, Any]) -> io.BytesIO:
        """Return a package of the XML members alone, each checked, some with another root."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for member in self.members:
                if member.lower().endswith((".xml", ".rels")):
                    root = changed[member] if member in changed else self.xml(member)
                    archive.writestr(member, etree.tostring(root))
        out.seek(0)
        return out

    def head(self, place: str, hidden: bool, title: str = "") -> None:
        """Begin a slide or a sheet with its name, which alone is no text."""
        self.counts["hidden"] += hidden
        said, name = self._said or bool(title), place[0].upper() + place[1:]
        name += " (hidden)" * hidden
        self.add(f"# {name}: {title}" if title else f"# {name}", place)
        self._said = said

    def add(self, text: str, place: str = "", row: int | None = None) -> None:
        """Add the line of a row, or without one a paragraph, of a place; "" adds nothing."""
        if text:
            if place and self._next != (place, row):
                self._locations.append(Location(self._length, place, row))
            self._next, self._said = (place, row and row + 1), True
            self._text.append(f"{text}\n" if row else f"{text}\n\n".replace("\r", "\n"))
            self._length += len(self._text[-1])

    def content(self, title: str = "", **metadata: object) -> Content:
        """Return what was added, with a remark on each thing counted; refuse a file of nothing."""
        if not self._said:
            there = [counted(self.counts[kind], _REMARKS[kind][1]) for kind in +self.counts]
            but = f", but {'; '.join(there)}" if there else ""
            raise DocumentError(f"{self.name} has no text{but}: leave it out, or convert it")
        for properties in {"docProps/core.xml", "meta.xml"} & self.members.keys():
            title = self.xml(properties).findtext(".//{*}title") or title
        text, counts = "".join(self._text).rstrip("\n"), self.counts
        counts["symbols"] += len(re.findall("[\ue000-\uf8ff]", text))
        remarks, places = remarks_on(counts, _REMARKS), tuple(self._locations)
        return Content(text, " ".join(title.split()), metadata, remarks, places)


def zipped(member: str, data: bytes) -> bytes:
    """Return an archive of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
    return out.getvalue()


def local(element: Any) -> str:
    """Return the name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]


def at(element: Any, name: str) -> str:
    """Return an attribute of some namespace by its name without it, or ""."""
    return next((text for key, text in element.attrib.items() if key.endswith(f"}}{name}")), "")
