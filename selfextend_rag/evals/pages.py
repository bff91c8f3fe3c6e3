"""HTML pages of results, which load nothing from elsewhere, and files that appear whole."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{border:1px solid #bbb;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}th{background:#f2f2f2}img{max-width:100%}"
    "small{color:#555}pre{white-space:pre-wrap;margin:0}"
)


def html_page(title: str, parts: Sequence[str]) -> str:
    """Return HTML under a heading as a page."""
    named = html.escape(title)
    head = f'<meta charset="utf-8"><title>{named}</title><style>{_STYLE}</style>'
    body = f"<h1>{named}</h1>{''.join(parts)}"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all; one that is there is replaced."""
    beside = path.with_suffix(f"{path.suffix}.new")
    beside.write_text(text, "utf-8", errors="replace")
    os.replace(beside, path)
