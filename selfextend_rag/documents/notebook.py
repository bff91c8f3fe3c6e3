"""Jupyter notebooks: cells and what they printed, without pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress
from typing import Any

from selfextend_rag.documents.content import Content, Location, Severity, remarks_on
from selfextend_rag.documents.encoding import normalize_newlines
from selfextend_rag.documents.html import read_html
from selfextend_rag.errors import DocumentError

_LEFT_OUT: dict[str, tuple[Severity, str]] = {
    "attached files": ("warning", "attached file{s} {are} not read"),
    "pictures": ("warning", "picture{s} {are} not read"),
    "outputs without text": ("warning", "output{s} without text {are} not read"),
}
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_OBJECT = re.compile(r"<IPython\.|<[\w.]+(?: object)?(?: at 0x[0-9a-f]+)?>\Z")
_PICTURE = re.compile("image/|(?:png|jpeg|svg)$")


def read_notebook(text: str, name: str) -> Content:
    """Return the cells of a notebook in their order, code between ``` with its output below.

    Of an output in several forms one is taken, as text if it can be. Pictures, attached files and
    outputs without text are counted. Each cell is a location.

    Raises:
        DocumentError: it is no notebook, a damaged one, or has no text.
    """
    left_out: Counter[str] = Counter()
    try:
        book = json.loads(text)
        sheets = book.get("worksheets", [book])  # the former until 2015
        cells = [_cell(cell, left_out) for sheet in sheets for cell in sheet["cells"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"({type(error).__name__}: {error}); open it in Jupyter and save it again"
        raise DocumentError(f"{name} is a damaged notebook {why}") from error
    out, locations = "", []
    for number, cell in enumerate(cells, 1):
        if cell.strip():
            out += "\n\n" if out else ""
            locations.append(Location(len(out), f"cell {number}"))
            out += cell
    if not out:
        raise DocumentError(f"{name} is a notebook without text; leave it out")
    remarks = remarks_on(left_out, _LEFT_OUT)
    return Content(out, "", {"cells": len(cells)}, remarks, tuple(locations))


def _cell(cell: dict[str, Any], left_out: Counter[str]) -> str:
    source = _text(cell["source"] if "source" in cell else cell.get("input", "")).strip("\n")
    left_out["attached files"] += len(cell.get("attachments", ()))
    if cell["cell_type"] != "code":
        return f"{'#' * cell['level']} {source}" if "level" in cell else source
    outputs = (_output(output, left_out) for output in cell.get("outputs", ()))
    return "\n\n".join([f"```\n{source}\n```", *filter(None, outputs)])


def _output(output: dict[str, Any], left_out: Counter[str]) -> str:
    forms = {**output, **output.get("data", {})}
    if "traceback" in forms:
        error = f"{forms.get('ename', '')}: {forms.get('evalue', '')}"
        return _text("\n".join(forms["traceback"]) or error)
    text = _text(forms.get("text/plain") or forms.get("text") or "").strip("\n")
    if not text or _OBJECT.match(text):  # the name of an object that has a form to show
        shown = _text(forms.get("text/markdown") or forms.get("text/latex") or "")
        with suppress(DocumentError):  # no text there
            shown = shown or read_html(_text(forms.get("text/html") or ""), "").text
        text = shown or text * (not text.startswith("<IPython."))
    pictures = any(map(_PICTURE.match, forms))
    left_out["pictures"] += pictures
    left_out["outputs without text"] += not (text or pictures)
    return text


def _text(lines: str | list[str]) -> str:
    return normalize_newlines(_COLOURS.sub("", "".join(lines)))
