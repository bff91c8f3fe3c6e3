"""E-books (EPUB): the chapters in their order of reading, each an HTML page."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from urllib.parse import unquote

from selfextend_rag.documents.content import Content, Location, Remark, Severity, normalize_newlines
from selfextend_rag.documents.encoding import decode
from selfextend_rag.documents.html import declared_encoding, read_html
from selfextend_rag.documents.package import Package
from selfextend_rag.errors import DocumentError

_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""How fonts are made useless for others, which hides no text (EPUB 3.3, section 4.3.7; Adobe)."""


def read_epub(data: bytes, name: str) -> Content:
    """Return the text of a book, its chapters separated by a blank line.

    Its title and creators are in the metadata; chapters without text (a cover) and pages that the
    order of reading leaves out are remarked.

    Raises:
        DocumentError: the book is damaged, protected against copying, or has no text.
    """
    package = Package(data, name)
    with package.reading():
        _refuse_protected(package)
        chapters, remarks, metadata = _order(package)
        pages = [_page(package, chapter) for chapter in chapters]
    text, locations, found = "", [], dict[tuple[str, Severity], list[Remark]]()
    for number, page in enumerate(pages, 1):
        place = f"chapter {number}"
        if page.text:
            locations.append(Location(len(text), place))
            text += f"{page.text}\n\n"
        for remark in page.remarks:
            same = found.setdefault((remark.kind, remark.severity), [])
            same.append(replace(remark, location=place))
    if not locations:
        says = f"has no text in any of its {len(pages)} chapters; have that of its pictures"
        raise DocumentError(f"{name} {says} recognised and read that")
    for (kind, severity), same in found.items():
        says = f"in {len(same)} of {len(pages)} chapters, the first {same[0].location}"
        count = sum(remark.count for remark in same)
        remarks.append(Remark(kind, f"{says}: {same[0].message}", severity, count))
    return Content(text.strip(), str(metadata["title"]), metadata, tuple(remarks), tuple(locations))


def _refuse_protected(package: Package) -> None:
    """Refuse a book with parts that are encrypted, other than its fonts."""
    if "META-INF/encryption.xml" in package.members:
        root = package.xml("META-INF/encryption.xml")
        methods = {node.get("Algorithm") for node in root.iterfind(".//{*}EncryptionMethod")}
        if methods - {*_FONTS}:
            says = "is protected against copying (DRM); read a copy that has no protection"
            raise DocumentError(f"{package.name} {says}")


def _order(package: Package) -> tuple[list[str], list[Remark], dict[str, object]]:
    """Return the chapters' members in their order, what is not in it, and whose book it is."""
    container = package.xml("META-INF/container.xml")
    main = next(node.get("full-path") for node in container.iterfind(".//{*}rootfile"))
    book, folder = package.xml(main), posixpath.dirname(main)
    items = {
        node.get("id"): (
            posixpath.normpath(posixpath.join(folder, unquote(node.get("href")))),
            node,
        )
        for node in book.iterfind(".//{*}manifest/{*}item")
    }
    ids = [node.get("idref") for node in book.iterfind(".//{*}spine/{*}itemref")]
    chapters = [items[id][0] for id in ids if id in items]
    present = [chapter for chapter in chapters if chapter in package.members]
    others = [
        member
        for member, node in items.values()
        if node.get("media-type") == "application/xhtml+xml"
        and member not in chapters
        and "nav" not in (node.get("properties") or "").split()
    ]
    remarks = []
    if missing := len(ids) - len(present):
        says = f"{missing} of {len(ids)} chapters are not in the file"
        remarks.append(Remark("missing chapters", says, "loss", missing))
    if others:
        says = f"{len(others)} pages outside the order of reading are left out: {others[:5]}"
        remarks.append(Remark("other pages", says, "warning", len(others)))
    title, creators = (
        [" ".join(node.xpath("string()").split()) for node in book.iterfind(f".//{{*}}{tag}")]
        for tag in ("title", "creator")
    )
    return present, remarks, {"title": (title or [""])[0], "creators": creators}


def _page(package: Package, member: str) -> Content:
    data = package.read(member)
    content = decode(data, f"{package.name}: {member}", declared=declared_encoding(data))
    try:
        page = read_html(content.text, package.name)
    except DocumentError as error:  # a picture alone, as covers are
        remark = Remark("chapters without text", str(error), "warning")
        return Content("", remarks=(*content.remarks, remark))
    return replace(page, text=normalize_newlines(page.text), remarks=content.remarks + page.remarks)
