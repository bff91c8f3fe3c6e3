"""From HTML to text that keeps the structure, and an account of what the text does not say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from html import escape

from selfextend_rag.documents.content import LONE_SURROGATE, Content, Severity, remarks_on
from selfextend_rag.documents.html.page import REMOVED, Page
from selfextend_rag.errors import DocumentError

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{0,200}?encoding\s*=\s*["']"""
    rb"([\w.:-]+)",
    re.IGNORECASE,
)
# A CDATA section that ends; others, comments and scripts are as they were, up to the page's end.
_CDATA = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1|\Z)|<!\[CDATA\[(.*?)(\]\]>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
# Entities that a page of XML declares itself; those made of others could make it large.
_SUBSET = re.compile(
    r"((?:\s|<\?[^>]*>)*<!DOCTYPE\b[^>\[]*)\[(.*?)\]\s*>", re.IGNORECASE | re.DOTALL
)
_ENTITY = re.compile(r"""<!ENTITY\s+([\w.-]+)\s+["']([^"'&<>%]*)["']""")
_ARTICLE = re.compile(r'"articleBody"\s*:\s*("(?:[^"\\]++|\\.)*+")', re.DOTALL)
# Sentences in a script, as far as no sign of code is in them.
_PROSE = re.compile(r"""["'`>]([^"`<>{}\[\]=;|\\]{80,})""")
_WORD = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]{3}|(?<!\S)[^\W\d_]{2,}")

# What the text does not say. A menu that is mostly links says nothing of the page itself.
REMARKS: dict[str, tuple[Severity, str]] = {
    "script": ("note", "script{s} {are} left out"),
    "style": ("note", "style sheet{s} {are} left out"),
    "comments": ("note", "comment{s} {are} left out"),
    "hidden fields": ("note", "hidden field{s} or password{s} of forms {are} left out"),
    "menus": ("note", "word{s} of menus, mostly links, {are} left out"),
    "menus with text": ("warning", "word{s} of menus that are not mostly links {are} left out"),
    "in templates": ("warning", "word{s} in templates, which scripts may show, {are} left out"),
    "hidden": ("warning", "word{s} that the page hides {are} read like the others"),
    "aria-hidden": ("note", "word{s} hidden from screen readers alone {are} read"),
    "pictures": ("note", "picture{s} or recording{s} {have} no description"),
    "frames": ("warning", "frame{s} of other files {are} not opened"),
    "spans ignored": (
        "warning",
        "cell{s} of a table {do} not span as much as stated; others may be in wrong columns",
    ),
    "reversed lists": ("warning", "list{s} that count down from an unknown number {have} none"),
    "text in styles": ("warning", "text{s} that style sheets add {are} left out"),
    "numbers in styles": (
        "warning",
        "rule{s} of style sheets for numbers of headings or lists {are} not followed",
    ),
    "articles in scripts": ("warning", "article{s} that only scripts have {are} read, at the end"),
    "text in scripts": (
        "warning",
        "character{s} of prose {are} in scripts, which a browser may show",
    ),
    "cut off": ("warning", "tag, comment or script has no end, and text may be lost with it"),
    "lone surrogates": ("loss", "lone surrogate{s}, which {are} no text, {are} written U+FFFD"),
}


def declared_encoding(data: bytes) -> str | None:
    """Return the encoding that the first bytes of an HTML or XML file declare, or None."""
    found = _DECLARED.search(data[:4096])
    return (found.group(1) or found.group(2)).decode("ascii") if found else None


def read_html(markup: str, name: str, *, may_be_empty: bool = False) -> Content:
    """Return the text of a web page, or of a part of one, as people see it.

    Headings start with ``#`` signs, list items with ``-`` or their number, and table rows are
    their cells between ``|``, each in its column; a superscript number is written ``^2``, deleted
    text ``~~old~~``, a ticked box ``[x]``, the text of a picture ``[image: text]``. Hidden text is
    read too, since scripts show it, and counted. Menus (``nav``), scripts, styles and comments
    are left out and counted; where a page has little text and its scripts have an ``articleBody``,
    that is read. Nothing outside the markup is opened.

    Args:
        markup: the page.
        name: what errors call it.
        may_be_empty: return a page without text; otherwise it is refused.

    Raises:
        DocumentError: the page has no text, or its elements are nested too deeply.
    """
    markup, unreadable = LONE_SURROGATE.subn("\ufffd", markup)
    if "<![CDATA[" in markup:
        markup = _CDATA.sub(lambda found: escape(found[2]) if found[3] else found[0], markup)
    if subset := _SUBSET.match(markup):
        markup = subset[1] + ">" + markup[subset.end() :]
        for entity, value in _ENTITY.findall(subset[2]):
            markup = markup.replace(f"&{entity};", value)
    page = Page(markup, name)
    if page.counts["menus"] + page.counts["menus with text"] and not page.text():
        page = Page(markup, name, with_menus=True)
    page.counts += Counter({"lone surrogates": unreadable, "frames": len(page.frames)})
    _read_scripts(page, name)
    remarks = remarks_on(page.counts, REMARKS, {"frames": ": " + ", ".join(page.frames[:5])})
    removed = {tag: page.counts[tag] for tag in REMOVED if page.counts[tag]}
    if not page.text() and not may_be_empty:
        left_out = ", ".join(f"{count} {tag}" for tag, count in removed.items()) or "nothing"
        more = "".join(f"; {remark.message}" for remark in remarks if remark.severity != "note")
        raise DocumentError(
            f"{name} is an HTML page without text (left out: {left_out}{more}); save the page from "
            "a browser once it shows its text, and read that"
        )
    headings = (line for _, prefix, line in page.out.lines if prefix == "# ")
    title = page.title or next(headings, "")
    return Content(page.text(), title, {"removed_elements": removed}, remarks)


def _read_scripts(page: Page, name: str) -> None:
    """Read articles that only scripts have, and count other prose that the page does not show."""
    shown = _packed(page.text())
    for article in _ARTICLE.findall("\n".join(page.scripts)):
        with suppress(ValueError):  # what is no string of JSON is counted below
            body = LONE_SURROGATE.sub("\ufffd", json.loads(article, strict=False))
            if not re.search(r"<\w", body):
                body = "".join(f"<p>{escape(line)}" for line in body.splitlines())
            read = Page(body, name)
            text = read.text()
            if _missing(text.splitlines(), shown) > len(text) / 2:
                page.out.adopt(read.out)
                shown += _packed(text)
                page.counts["articles in scripts"] += 1
    prose = [part for script in page.scripts for part in _PROSE.findall(_unescaped(script))]
    missing = _missing([part for part in prose if len(_WORD.findall(part)) > 9], shown)
    if missing > max(400, len(shown) / 2):
        page.counts["text in scripts"] = missing


def _missing(parts: Sequence[str], shown: str) -> int:
    """Return how many characters of the parts are not in a packed text, by a sample of each."""
    packed = [_packed(part) for part in sorted(parts, key=len)[-500:]]
    return sum(len(part) for part in packed if part[len(part) // 3 :][:40] not in shown)


def _packed(text: str) -> str:
    return "".join(text.split())


def _unescaped(script: str) -> str:
    """Return a script whose strings are what their escapes mean, near enough to find sentences."""
    script = re.sub(r"(?<!\\)\\++u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), script)
    return re.sub(r"(?<!\\)\\++(?:[nrt]|(.))", lambda found: found[1] or " ", script)
