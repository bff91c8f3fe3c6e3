"""From PDF to text, page by page; there is no text recognition."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfextend_rag.documents.content import Content, Location, Remark, Severity
from selfextend_rag.errors import DocumentError

_SECONDS = 20.0  # for one page
_MEMORY = 900 << 20  # bytes for the process that reads, and thrice the file
_LOCK = threading.Lock()


def read_pdf(data: bytes, name: str) -> Content:
    """Return the text of a PDF, its pages separated by a blank line.

    Values of form fields and free-text notes are in the text where they are shown. Characters that
    the file's fonts do not explain are written U+FFFD. Pages without text, unreadable characters,
    comments, attached files and repairs are remarks.

    Raises:
        DocumentError: the file is damaged, needs a password, has no text or hardly any that is
            readable, or is too much for the time and memory that a file is given.
    """
    if b"%PDF-" not in data[:1024]:
        raise _damaged(name, "its header %PDF- is damaged or missing")
    found = _read_apart(data, name)
    if found.get("error") == "password":
        raise DocumentError(
            f"{name} is encrypted with a password; save a copy without one (qpdf --decrypt does "
            "it) and read that"
        )
    if "error" in found:
        raise _damaged(name, found["error"])
    whole = sum(page is not None for page in found["pages"])
    if not whole or whole < len(found["pages"]):
        raise _damaged(name, f"it states {len(found['pages'])} pages, and {whole} can be found")
    if found["broken"] or (found["wrong"] and not any(page["text"] for page in found["pages"])):
        raise _damaged(name, f"{found['broken'] + found['wrong']} of its streams are damaged")
    return _joined(found, name, data.startswith(b"%PDF-"))


def _read_apart(data: bytes, name: str) -> dict[str, Any]:
    """Read a file in a process of its own, so that no file can hang or crash this one.

    Its start takes 0.1 s, most of it to load pdfium. A thread could not be stopped, and would keep
    the lock that pdfium, which is not thread-safe, needs. ``multiprocessing`` runs the main module
    again: it fails in programs without a file or a guard. Where the program is no Python
    interpreter that can be started (frozen, embedded), files are read here, one at a time.
    """
    script = Path(__file__).with_name("pdf_pages.py")
    interpreter = Path(sys.executable or "").name.lower().startswith(("python", "pypy"))
    if getattr(sys, "frozen", False) or not interpreter or not script.is_file():
        from selfextend_rag.documents.pdf_pages import read_pages

        with _LOCK:
            return read_pages(data)
    memory = _MEMORY + 3 * len(data)
    limits = [json.dumps([str(path) for path in sys.path]), str(_SECONDS), str(memory)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), *limits],
        input=data,
        capture_output=True,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        check=False,
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    problem = done.stderr.decode(errors="replace").strip() or f"pdfium ends with {done.returncode}"
    if problem.startswith("Timeout"):
        raise _damaged(name, f"one of its pages takes longer than {_SECONDS:g} s")
    raise _damaged(name, f"{problem.splitlines()[-1][:200]}, with {memory >> 20} MiB of memory")


def _joined(found: dict[str, Any], name: str, headed: bool) -> Content:
    pages: list[dict[str, Any]] = found["pages"]
    text = ""
    locations = []
    for number, page in enumerate(pages, 1):
        if page["text"]:
            text += "\n\n" if text else ""
            locations.append(Location(len(text), f"page {number}"))
            text += page["text"]
    if not text:
        raise DocumentError(
            f"{name} has no text on any of its {len(pages)} page(s), as a scan has none; run text "
            "recognition on it first (ocrmypdf does it) and read the result"
        )
    garbled, shown = text.count("\ufffd"), sum(not char.isspace() for char in text)
    if garbled > 0.75 * shown:
        raise DocumentError(
            f"{name} has {shown} characters, of which {garbled} are unreadable: its fonts do not "
            "say which letters they show; run text recognition on it (ocrmypdf --force-ocr does "
            "it) and read the result"
        )
    empty = [number for number, page in enumerate(pages, 1) if not page["text"]]
    metadata: dict[str, object] = {"pages": len(pages), "pages_without_text": empty}
    if found["files"]:
        metadata["attachments"] = found["files"]
    remarks = tuple(_remarks(found, empty, headed))
    return Content(text, found["title"], metadata, remarks, tuple(locations))


def _remarks(found: dict[str, Any], empty: list[int], headed: bool) -> list[Remark]:
    pages, files, remarks = found["pages"], found["files"], []

    def add(severity: Severity, kind: str, count: int, says: str, of: Sequence[object]) -> None:
        if count:
            places = ", ".join(map(str, of[:10])) + (", ..." if len(of) > 10 else "")
            place = f"page {of[0]}" if len(of) == 1 and isinstance(of[0], int) else None
            message = f"{count} {says}" + (f": {places}" if of else "")
            remarks.append(Remark(kind, message, severity, count, place))

    def add_of_pages(severity: Severity, kind: str, key: str, says: str) -> None:
        numbers = [number for number, page in enumerate(pages, 1) if page[key]]
        add(severity, kind, sum(page[key] for page in pages), f"{says}, on pages", numbers)

    says = f"of {len(pages)} pages have no text (pictures or blank) and are missing"
    add("loss", "pages without text", len(empty), f"{says} from the document", empty)
    says = "characters could not be read and are written U+FFFD"
    add_of_pages("loss", "unreadable characters", "garbled", says)
    add_of_pages(
        "loss", "text without size", "unseen", "runs of text have no size and are not read"
    )
    says = "comments, notes and hidden fields are not read"
    add_of_pages("warning", "comments", "unread", says)
    add("warning", "attached files", len(files), "attached files are not read", files)
    says = "form of Adobe's XFA kind is not read, but for what every viewer shows of it"
    add("warning", "form", int(found["xfa"]), says, ())
    says = "compressed streams end early or do not match their checksums; text may be wrong"
    add("loss", "damaged content", found["wrong"], says, ())
    outside = max(0, found["found"] - len(pages))
    says = f"pages of the file are not among the {len(pages)} that it shows, and are not read"
    add("warning", "pages outside the document", outside, says, ())
    departures = ["it does not start with its header"] * (not headed)
    departures += ["its table of objects had to be rebuilt"] * found["rebuilt"]
    says = "departures from the PDF format; compare what is read with what a viewer shows"
    add("warning", "departures from the format", len(departures), says, departures)
    return remarks


def _damaged(name: str, reason: str) -> DocumentError:
    return DocumentError(
        f"{name} is a damaged or unusual PDF ({reason}); open it in a viewer, save it again as PDF "
        "or text, and read that"
    )
