"""E-books (EPUB): the chapters in their order of reading, each an HTML page."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from urllib.parse import unquote

from selfextend_rag.documents.content import Content, Location, Remark, Severity, remarked
from selfextend_rag.documents.encoding import decode, normalize_newlines
from selfextend_rag.documents.html import declared_encoding, read_html
from selfextend_rag.documents.office.package import Package
from selfextend_rag.errors import DocumentError

_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""How fonts are made useless for others, which hides no text (EPUB 3.3, section 4.3.7; Adobe)."""
_PAGE = "application/xhtml+xml"


def read_epub(data: bytes, name: str) -> Content:
    """Return the text of a book, its chapters separated by a blank line.

    Its title and creators are in the metadata; chapters without text (a cover) and pages that the
    order of reading leaves out are remarked.

    Raises:
        DocumentError: the book is damaged, protected against copying, or has no text.
    """
    package = Package(data, name)
    with package.reading():
        chapters, remarks, metadata = _order(package)
        pages = [_page(package, chapter) for chapter in chapters]
    text, locations, found = "", [], dict[tuple[str, Severity], list[tuple[int, Remark]]]()
    for number, page in enumerate(pages, 1):
        if page.text:
            locations.append(Location(len(text), f"chapter {number}"))
            text += f"{page.text}\n\n"
        for remark in page.remarks:
            found.setdefault((remark.kind, remark.severity), []).append((number, remark))
    if not locations:
        says = "has no text in its chapters; have that of its pictures recognised"
        raise DocumentError(f"{name} {says}")
    for (kind, severity), same in found.items():
        says = f"in {len(same)} of {len(pages)} chapters, first in chapter {same[0][0]}"
        count = sum(remark.count for _, remark in same)
        remarks.append(Remark(kind, f"{says}: {same[0][1].message}", severity, count))
    return Content(
        text.rstrip(), str(metadata["title"]), metadata, tuple(remarks), tuple(locations)
    )


def _order(package: Package) -> tuple[list[str], list[Remark], dict[str, object]]:
    """Return the chapters' members in their order, what is not in it, and whose book it is."""
    if "META-INF/encryption.xml" in package.members:
        methods = package.xml("META-INF/encryption.xml").iterfind(".//{*}EncryptionMethod")
        if {node.get("Algorithm") for node in methods} - {*_FONTS}:
            says = "is protected against copying (DRM); read a copy that has no protection"
            raise DocumentError(f"{package.name} {says}")
    main = package.xml("META-INF/container.xml").find(".//{*}rootfile").get("full-path")
    book, members = package.xml(main), dict[str, str]()
    pages, contents = set[str](), set[str]()
    for node in book.iterfind(".//{*}manifest/{*}item"):
        path = posixpath.join(posixpath.dirname(main), unquote(node.get("href")))
        members[node.get("id")] = member = posixpath.normpath(path)
        if "nav" in node.get("properties", "").split():
            contents.add(member)
        elif node.get("media-type") == _PAGE:
            pages.add(member)
    order = [members.get(node.get("idref"), "") for node in book.iterfind(".//{*}itemref")]
    chapters = [member for member in order if member in package.members]
    remarks = []
    if missing := len(order) - len(chapters):
        says = f"of {len(order)} chapters {{are}} not in the file"
        remarks.append(remarked("loss", "missing chapters", missing, says))
    pages |= {
        name for name in package.members if name.lower().endswith((".xhtml", ".html", ".htm"))
    }
    if others := sorted(pages - {*order} - contents):
        says, more = "page{s} outside the order of reading {are} left out", f": {others[:5]}"
        remarks.append(remarked("warning", "other pages", len(others), says, more))
    titles, creators = (
        [" ".join(node.xpath("string()").split()) for node in book.iterfind(f".//{{*}}{tag}")]
        for tag in ("title", "creator")
    )
    return chapters, remarks, {"title": "".join(titles[:1]), "creators": creators}


def _page(package: Package, member: str) -> Content:
    data = package.read(member)
    content = decode(data, f"{package.name}: {member}", declared=declared_encoding(data))
    page = read_html(content.text, package.name, may_be_empty=True)
    remarks = content.remarks + page.remarks
    if not page.text:  # a cover, for instance
        says = f"{member} has no text"
        remarks = (*remarks, Remark("chapters without text", says, "warning"))
    return replace(page, text=normalize_newlines(page.text), remarks=remarks)
