"""Checks a built site: it asks no other host for anything, and all its own links lead somewhere.

python docs/site/check.py build/html
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = ("src", "href", "srcset", "poster", "data", "action")  # attributes with addresses
STYLED = re.compile(r"(?:url\(|@import\s)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Links(HTMLParser):
    """The addresses on a page: those that are fetched with it, and those that are links."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of an element."""
        for name, value in attrs:
            if value and name in FETCHED:
                (self.links if tag == "a" else self.fetched).append(value)
            elif value and name == "style":
                self.fetched += STYLED.findall(value)

    def handle_data(self, data: str) -> None:
        """Note what a style sheet in the page would fetch."""
        if self.cdata_elem == "style":
            self.fetched += STYLED.findall(data)


def faults(site: Path) -> list[str]:
    """Return what is wrong with the pages and style sheets of a site, one sentence each."""
    found = []
    for page in sorted(site.rglob("*.html")):
        links, name = Links(), page.relative_to(site)
        links.feed(page.read_text("utf-8"))
        found += [f"{name} asks another host for {x}" for x in links.fetched if outside(x)]
        local = [x for x in (*links.fetched, *links.links) if not outside(x)]
        found += [f"{name} leads to {x}, which is not there" for x in local if lost(site, page, x)]
    for sheet in sorted(site.rglob("*.css")):
        asked = STYLED.findall(sheet.read_text("utf-8"))
        found += [f"{sheet.relative_to(site)} asks another host for {x}" for x in asked]
    return found


def outside(address: str) -> bool:
    """Return whether an address is on another host."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def lost(site: Path, page: Path, address: str) -> bool:
    """Return whether an address on a page is that of no file of the site."""
    parts = urlsplit(address)
    if parts.scheme or not parts.path:
        return False
    start = site if parts.path.startswith("/") else page.parent
    target = start / unquote(parts.path).lstrip("/")
    return not (target.is_file() or (target / "index.html").is_file())


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "The site asks no other host for anything, and its links are whole.")
    sys.exit(bool(wrong))
