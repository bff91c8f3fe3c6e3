"""From PDF to text, page by page."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from selfextend_rag.documents.content import (
    Content,
    Location,
    Pages,
    Remark,
    Severity,
    remarked,
)
from selfextend_rag.documents.pictures.picture import Picture
from selfextend_rag.documents.pictures.reader import rendered
from selfextend_rag.errors import DocumentError

_SECONDS = 20.0  # for one page
_MEMORY = 900 << 20  # bytes for the process that reads, and thrice the file
# The same where text is recognised. A dense page takes 45 s on one core, and 1.3 GiB of addresses.
_SCAN_SECONDS, _SCAN_MEMORY = 300.0, 3 << 30
_SURE = 0.97  # mean confidence below which a tenth of the words is wrong (benchmarks/scans.py)
_OTHERWISE = "recognise its text with another program first (ocrmypdf does it), and read the result"
_LOOK = 'or with pages="auto" for a vision model to look at'
# What pages have of what a remark speaks of, each with its number there.
_OF_PAGES: dict[str, tuple[Severity, str, str]] = {
    "unreadable lines": ("loss", "blurred", "line{s} of pictures can't be read"),
    "unreadable characters": ("loss", "garbled", "character{s} {are} unreadable, written U+FFFD"),
    "letters without a place": (
        *("warning", "unsure"),
        "letter{s} {are} placed by their marks; spaces next to them may be missing or too many",
    ),
    "text without size": ("loss", "unseen", "run{s} of text {have} no size and {are} not read"),
    "pictures": ("warning", "pictures", "picture{s} {are} not read, nor is text in pictures"),
    "comments": ("warning", "unread", "comment{s}, note{s} or hidden field{s} {are} not read"),
}
# Libraries that start a thread for each core, whose stacks count as memory.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1", "MALLOC_ARENA_MAX": "2"}
_MOST_UNSCANNED = 5  # pages, each of which takes all the time that it is given
Progress = Callable[[int, int], None]
_LOCK = threading.Lock()
_PICTURES: dict[Pages, str] = {"text": "", "auto": "needed", "images": "all"}


def read_pdf(
    data: bytes,
    name: str,
    ocr: bool = False,
    progress: Progress | None = None,
    as_pictures: Pages = "text",
) -> Content:
    """Return the text of a PDF, its pages separated by a blank line.

    Values of form fields and free-text notes are in the text where they are shown. Characters that
    the file's fonts do not explain are written U+FFFD. Pages without text, unreadable characters,
    pictures, comments, attached files and repairs are remarks.

    Args:
        data: the file.
        name: its name, for messages.
        ocr: recognise the text of pages that have none, or a tenth of it unreadable, or few words
            over a picture. A page that takes too long for that is remarked on.
        progress: called with pages read and pages in all.
        as_pictures: ``"auto"`` to render those pages instead, ``"images"`` to render all.

    Raises:
        DocumentError: the file is damaged, needs a password, has no text or hardly any that is
            readable, or is too much for the time and memory that a file is given; or text is to
            be recognised, and the extra ``ocr`` is not installed.
    """
    if b"%PDF-" not in data[:1024]:
        raise _damaged(name, "its header %PDF- is damaged or missing")
    found = _read_apart(data, name, ocr, progress, _PICTURES[as_pictures])
    if found.get("error") == "password":
        raise DocumentError(
            f"{name} is encrypted with a password; save a copy without one (qpdf --decrypt does "
            "it) and read that"
        )
    if found.get("error") == "ocr":
        raise DocumentError(
            f"{name} has pages to be recognised, which needs rapidocr and onnxruntime "
            f'({found["missing"]}); pip install "selfextend-rag[ocr]"'
        )
    if found.get("error") == "vision":
        raise DocumentError(
            f"{name} has pages to be rendered as pictures, which needs Pillow "
            f'({found["missing"]}); pip install "selfextend-rag[vision]"'
        )
    if "error" in found:
        raise _damaged(name, found["error"])
    whole = sum(page is not None for page in found["pages"])
    if not whole or whole < len(found["pages"]):
        raise _damaged(name, f"it states {len(found['pages'])} pages, and {whole} can be found")
    said = any(page["text"] or "picture" in page for page in found["pages"])
    if found["broken"] or (found["wrong"] and not said):
        raise _damaged(name, f"{found['broken'] + found['wrong']} of its streams are damaged")
    return _joined(found, name, data.startswith(b"%PDF-"), ocr)


def _read_apart(
    data: bytes, name: str, ocr: bool, progress: Progress | None, pictures: str
) -> dict[str, Any]:
    """Read a file in a process of its own, so that no file can hang or crash this one.

    Its start takes 0.1 s, most of it to load pdfium. A thread could not be stopped, and would keep
    the lock that pdfium, which is not thread-safe, needs. ``multiprocessing`` runs the main module
    again: it fails in programs without a file or a guard. Where the program is no Python
    interpreter that can be started (frozen, embedded), files are read here, one at a time.

    Where the process ends on a page to be recognised, another goes on without recognising that.
    """
    found: list[Any] = []  # what is known of the file, then the pages
    script, unscanned = Path(__file__).with_name("pdf_pages.py"), dict[int, str]()
    interpreter = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    if getattr(sys, "frozen", False) or not interpreter or not script.is_file():
        from selfextend_rag.documents.pdf_pages import read_pages

        with _LOCK:
            scan = _SCAN_SECONDS if ocr else None
            for value in read_pages(data, 0, scan, pictures=pictures):
                _add(found, value, progress)
    else:
        memory = (_SCAN_MEMORY if ocr else _MEMORY) + 3 * len(data)
        given: dict[str, Any] = {"path": [str(path) for path in sys.path], "memory": memory}
        given |= {"seconds": _SECONDS, "scan": _SCAN_SECONDS if ocr else None}
        given["pictures"] = pictures
        command = [sys.executable, "-I", "-S", str(script)]
        while problem := _run([*command, json.dumps(given)], data, found, progress):
            page = len(found) - 1
            if not ocr or page < 0 or page in unscanned or len(unscanned) == _MOST_UNSCANNED:
                raise _damaged(name, _reason(problem, memory, ocr))
            unscanned[page] = _reason(problem, memory, ocr)
            given |= {"first": page, "plain": [*unscanned]}
    error = next((value for value in found if value and "error" in value), None)
    return error or {**found[0], "pages": found[1:], "unscanned": unscanned}


def _add(found: list[Any], value: Any, progress: Progress | None) -> None:
    found.append(value)
    if progress and "count" in found[0]:
        progress(len(found) - 1, found[0]["count"])


def _run(command: list[str], data: bytes, found: list[Any], progress: Progress | None) -> str:
    """Add what a process finds in a file to what was found; return why it did not end well."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    with process:
        try:
            with suppress(OSError):  # it ended before it had read the file
                process.stdin.write(data)  # type: ignore[union-attr]  # all three are pipes
                process.stdin.close()  # type: ignore[union-attr]  # a pipe
            again = bool(found)
            for number, line in enumerate(process.stdout or ()):
                if line.endswith(b"\n") and (number or not again):
                    _add(found, json.loads(line), progress)
            said = process.stderr.read()  # type: ignore[union-attr]  # a pipe
            problem = said.decode(errors="replace")
        except BaseException:  # raised again
            process.kill()
            raise
    ended = f"pdfium ends with {process.returncode}"
    return (problem.strip() or ended) if process.returncode else ""


def _reason(problem: str, memory: int, ocr: bool) -> str:
    if re.search("^Timeout", problem, re.MULTILINE):
        allowed = f"{_SECONDS:g} s" + (f", or {_SCAN_SECONDS:g} s to be recognised" if ocr else "")
        return f"one of its pages takes longer than {allowed}"
    return f"{problem.splitlines()[-1][:200]}, with {memory >> 20} MiB of memory"


def _joined(found: dict[str, Any], name: str, headed: bool, ocr: bool) -> Content:
    pages: list[dict[str, Any]] = found["pages"]
    text = ""
    locations, pictures = [], list[Picture]()
    for number, page in enumerate(pages, 1):
        if "picture" in page:
            png = base64.b64decode(page.pop("picture"))
            pictures.append(rendered(png, f"page {number}", len(text)))
        if page["text"]:
            text += "\n\n" if text else ""
            locations.append(Location(len(text), f"page {number}"))
            text += page["text"]
    try_this = _OTHERWISE if ocr else f"read it with ocr=True, {_LOOK}, or {_OTHERWISE}"
    if not text and not pictures:
        why = "and none could be recognised" if ocr else "as a scan has none"
        why += "".join(f" ({reason})" for reason in {*found["unscanned"].values()})
        raise DocumentError(
            f"{name} has no text on any of its {len(pages)} page(s), {why}; {try_this}"
        )
    garbled, shown = text.count("\ufffd"), sum(not char.isspace() for char in text)
    if garbled > 0.75 * shown:
        raise DocumentError(
            f"{name} has {shown} characters, of which {garbled} are unreadable: its fonts do not "
            f"say which letters they show; {try_this}"
        )
    shown_ones = [int(picture.name.split()[1]) for picture in pictures]
    empty = [number for number, page in enumerate(pages, 1) if not page["text"]]
    metadata: dict[str, object] = {"pages": len(pages), "pages_without_text": empty}
    if pictures:
        metadata["pages_as_pictures"] = shown_ones
    found["files"] += [name for page in pages for name in page["files"]]
    if found["files"]:
        metadata["attachments"] = found["files"]
    if scans := _scans(pages):
        metadata["recognised"] = [{"page": number, **scan} for number, scan in scans.items()]
    remarks = tuple(_remarks(found, sorted({*empty} - {*shown_ones}), headed))
    parts = tuple(locations), tuple(pictures)
    return Content(text, found["title"], metadata, remarks, *parts)


def _remarks(found: dict[str, Any], empty: list[int], headed: bool) -> list[Remark]:
    pages, files, remarks = found["pages"], found["files"], _of_scans(found["pages"])

    def add(severity: Severity, kind: str, count: int, says: str, of: Sequence[object]) -> None:
        if count:
            remarks.append(_remark(severity, kind, count, says, of))

    tried = any(page["scan"] for page in pages)
    why = "nothing could be recognised" if tried else "pictures, which ocr=True reads, or blank"
    says = f"of {len(pages)} pages {{have}} no text ({why}) and {{are}} missing from the document"
    add("loss", "pages without text", len(empty), says, empty)
    numbers = [page + 1 for page in found["unscanned"]]
    if numbers:
        says, reasons = "page{s} {were} not recognised", "; ".join({*found["unscanned"].values()})
        remark = _remark("loss", "pages not recognised", len(numbers), says, numbers)
        remarks.append(replace(remark, message=f"{remark.message} ({reasons})"))
    for kind, (severity, key, says) in _OF_PAGES.items():
        numbers = [number for number, page in enumerate(pages, 1) if page[key]]
        says += ", on pages" if len(numbers) > 1 else ", on page"
        add(severity, kind, sum(page[key] for page in pages), says, numbers)
    add("warning", "attached files", len(files), "attached file{s} {are} not read", files)
    says = "form of Adobe's XFA kind is not read, but for what every viewer shows of it"
    add("warning", "form", int(found["xfa"]), says, ())
    says = "compressed stream{s} {are} cut short or of another checksum; text may be wrong"
    add("loss", "damaged content", found["wrong"], says, ())
    outside = max(0, found["found"] - len(pages))
    says = f"page{{s}} of the file {{are}} not among the {len(pages)} that it shows, nor read"
    add("warning", "pages outside the document", outside, says, ())
    departures = ["it does not start with its header"] * (not headed)
    departures += ["its table of objects had to be rebuilt"] * found["rebuilt"]
    says = "departure{s} from the PDF format; compare what is read with what a viewer shows"
    add("warning", "departures from the format", len(departures), says, departures)
    return remarks


def _remark(severity: Severity, kind: str, count: int, says: str, of: Sequence[object]) -> Remark:
    places = ": " * bool(of) + ", ".join(map(str, of[:10])) + (", ..." if len(of) > 10 else "")
    place = f"page {of[0]}" if len(of) == 1 and isinstance(of[0], int) else None
    return remarked(severity, kind, count, says, places, place)


def _of_scans(pages: list[dict[str, Any]]) -> list[Remark]:
    """Return the remarks on pages that were recognised: on those that are not sure, apart."""

    def remark(severity: Severity, kind: str, scans: dict[int, dict[str, float]]) -> list[Remark]:
        if not scans:
            return []
        usual = fmean(scan["confidence"] for scan in scans.values())
        lowest = min(scan["lowest"] for scan in scans.values())
        says = (
            f"of {len(pages)} pages {{are}} recognised from pictures, with confidence {usual:.2f}"
        )
        says += f" ({lowest:.2f} in the least certain line); words may be wrong"
        return [_remark(severity, kind, len(scans), says, list(scans))]

    scans = _scans(pages)
    sure = {number: scan for number, scan in scans.items() if scan["confidence"] >= _SURE}
    unsure = {number: scan for number, scan in scans.items() if number not in sure}
    return [
        *remark("warning", "recognised pages", sure),
        *remark("loss", "poorly recognised pages", unsure),
    ]


def _scans(pages: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    return {n: page["scan"] for n, page in enumerate(pages, 1) if page["text"] and page["scan"]}


def _damaged(name: str, reason: str) -> DocumentError:
    return DocumentError(
        f"{name} is a damaged or unusual PDF ({reason}); open it in a viewer, save it again as PDF "
        "or text, and read that"
    )
