"""What notebooks show: HTML of plans, answers and reports, and bars of progress.

All text comes from documents and models, so all of it is escaped. There are no blank lines in what
is returned, so that it may be a part of Markdown too.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any


def escaped(text: object) -> str:
    """Return text as HTML that shows it, with its line ends."""
    return "<br>".join(escape(str(text)).splitlines())


def page(*parts: str) -> str:
    """Return parts as one, in which notebooks do not look for formulas: a price is no formula."""
    return f"<div class='tex2jax_ignore mathjax_ignore'>{''.join(parts)}</div>"


def paragraph(text: object) -> str:
    """Return a text as a paragraph."""
    return f"<p>{escaped(text)}</p>"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a row of headings."""

    def row(tag: str, cells: Sequence[object]) -> str:
        made = "".join(f"<{tag} style='text-align:left'>{escaped(x)}</{tag}>" for x in cells)
        return f"<tr>{made}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f"<table><thead>{row('th', head)}</thead><tbody>{body}</tbody></table>"


def quotation(before: str, text: str, after: str, source: str) -> str:
    """Return a marked text within what is before and after it, and where it is from."""
    quoted = f"{escaped(before)}<mark>{escaped(text)}</mark>{escaped(after)}"
    return f"<blockquote>{quoted}<br><small>{escaped(source)}</small></blockquote>"


def is_watched() -> bool:
    """Return whether a bar can move: on a terminal, or as a widget of a notebook."""
    if "ipykernel" in sys.modules:
        return importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(description: str = "reading") -> Callable[[int, int], None]:
    """Return a ``progress`` that draws a bar: a widget in notebooks, text on terminals.

    Each run of a model that it is given to draws a bar of its own.
    """
    bars: list[Any] = []
    lock = threading.Lock()

    def report(done: int, total: int) -> None:
        from tqdm.auto import tqdm

        with lock:
            if bars and (done < bars[0].n or total != bars[0].total):  # that run was ended early
                bars.pop().close()
            if not bars:
                bars.append(tqdm(total=total, desc=description, unit=" tokens"))
            bars[0].update(done - bars[0].n)
            if done >= total:
                bars.pop().close()

    return report
