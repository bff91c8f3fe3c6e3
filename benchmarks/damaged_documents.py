"""Read thousands of damaged files, each with a limit of time and memory, and count what happens.

    python benchmarks/damaged_documents.py txt html ipynb csv pdf --count 2000
    python benchmarks/damaged_documents.py docx --seeds FOLDER --count 2000 --keep failing/

A damaged file is a whole one, from FOLDER or made here, with some bytes flipped, cut, duplicated,
inserted or swapped; of a ZIP archive every second time the bytes of one member, packed again.
It may be read (with or without remarks) or refused with a ``DocumentError``; any other error, a
death of the process, more than ``--seconds`` or more memory than ``--megabytes`` is a failure, and
the exit status 1. Equal ``--seed``, equal damage; ``--keep`` writes the failing files.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from selfextend_rag.documents.document import Document
from selfextend_rag.errors import DocumentError

FAILURES = ("crash", "died", "too slow", "out of memory")

TEXT = "Zażółć gęślą jaźń. The pump must be checked twice, and costs 12.50 € (naïve déjà vu).\n"


def text_seeds() -> list[bytes]:
    japanese = "ポンプは半年ごとに点検します。\n" * 5
    return [
        *((TEXT * 20).encode(codec) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le")),
        *((TEXT * 20).encode(codec, "replace") for codec in ("cp1252", "cp1250", "ascii")),
        *(japanese.encode(codec) for codec in ("cp932", "euc-jp", "iso2022_jp", "utf-32")),
    ]


def html_seeds() -> list[bytes]:
    body = (
        f"<h1>Report</h1><p>{TEXT}</p><ul><li>one<li>two</ul><script>f()</script><pre>a\n b</pre>"
        "<table><tr><th rowspan=2>Item<td>Seal</tr><tr><td colspan=2>12.50</tr></table>"
    )
    page = (
        "<!doctype html><html><head><meta charset={}><title>T</title></head><body>{}</body></html>"
    )
    seeds = [page.format(codec, body).encode(codec, "replace") for codec in ("utf-8", "iso-8859-2")]
    seeds += [
        page.format(label, body).encode("cp1252", "replace") for label in ("utf-16", "x-sjis")
    ]
    return [*seeds, f'<?xml version="1.0" encoding="gbk"?><html>{body}</html>'.encode("gb18030")]


def csv_seeds() -> list[bytes]:
    rows = 'number,name,"note"\n' + "".join(f'{n},"Seal, {n}","two\nlines"\n' for n in range(40))
    semicolons = "Nummer;Preis\r\n" + "".join(f"{n};{n},50 €\r\n" for n in range(40))
    return [rows.encode(), semicolons.encode("cp1252"), rows.replace(",", "\t").encode("utf-16")]


def notebook_seeds() -> list[bytes]:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["12.5\n"]},
        {
            "output_type": "display_data",
            "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"},
        },
        {
            "output_type": "error",
            "ename": "ValueError",
            "evalue": "x",
            "traceback": ["\x1b[0mline"],
        },
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Plan\n", TEXT]},
        {"cell_type": "code", "execution_count": 1, "source": "f(1)", "outputs": outputs},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return [json.dumps(notebook, indent=1).encode(), json.dumps(notebook).encode()]


def pdf_seeds() -> list[bytes]:
    from fpdf import FPDF

    seeds = []
    for compress in (True, False):
        pdf = FPDF()
        pdf.set_compression(compress)
        pdf.set_font("helvetica", size=12)
        for page in range(3):
            pdf.add_page()
            pdf.multi_cell(0, 8, f"Page {page}. The pump must be checked twice. " * 20)
        seeds.append(bytes(pdf.output()))
    return seeds


BUILT: dict[str, Callable[[], list[bytes]]] = {
    **{"txt": text_seeds, "md": text_seeds, "html": html_seeds, "csv": csv_seeds, "pdf": pdf_seeds},
    "ipynb": notebook_seeds,
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to eight places damaged."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 1, 2, 8, 64, 1024)), len(out) - at)
        match rng.choice(("flip", "cut", "duplicate", "insert", "swap", "end")):
            case "flip" if length:
                out[at] ^= 1 << rng.randrange(8)
            case "cut":
                del out[at : at + length]
            case "duplicate":
                out[at:at] = out[at : at + length] * rng.choice((1, 1, 50))
            case "insert":
                out[at:at] = rng.choice((rng.randbytes(length or 1), b"\0", b"\xff", b'"', b"<"))
            case "swap":
                to = rng.randrange(len(out) + 1)
                out[at : at + length], out[to : to + length] = (
                    out[to : to + length],
                    out[at : at + length],
                )
            case "end" if rng.random() < 0.3:
                del out[at:]
    return bytes(out) or b"\0"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the file damaged, of a ZIP archive every second time inside one of its members."""
    if rng.random() < 0.5 or not zipfile.is_zipfile(io.BytesIO(data)):
        return mutated(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as packed:
        chosen = rng.choice(archive.namelist())
        for name in archive.namelist():
            member = archive.read(name)
            packed.writestr(name, mutated(member, rng) if name == chosen else member)
    return out.getvalue()


def read_files(pipe: Connection, megabytes: int) -> None:
    """Read each file whose path comes, and send its outcome; runs in a process of its own."""
    logging.getLogger().addHandler(logging.NullHandler())  # remarks are counted, not shown
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while path := pipe.recv():
        detail = ""
        try:
            outcome = "read with remarks" if Document.from_file(path).remarks else "read"
        except DocumentError:
            outcome = "refused"
        except MemoryError:
            outcome = "out of memory"
        except Exception as error:  # noqa: BLE001  whatever else comes is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = "crash"
            detail = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        pipe.send((outcome, detail, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


class Worker:
    """A process that reads files, started again when it dies or has to be ended."""

    def __init__(self, seconds: float, megabytes: int) -> None:
        self.seconds, self.megabytes = seconds, megabytes
        self.peak_megabytes = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=read_files, args=(theirs, self.megabytes), daemon=True
        )
        self._process.start()
        theirs.close()

    def outcome(self, path: Path) -> tuple[str, str]:
        outcome, detail = "too slow", f"over {self.seconds} s"
        try:
            self._pipe.send(str(path))
            if self._pipe.poll(self.seconds):
                outcome, detail, peak = self._pipe.recv()
                self.peak_megabytes = max(self.peak_megabytes, peak)
                return outcome, detail
            self._process.kill()
            self._process.join()
        except (EOFError, OSError):
            self._process.join()
            outcome, detail = "died", f"exit status {self._process.exitcode}"
        self._start()
        return outcome, detail

    def end(self) -> None:
        self._pipe.send("")
        self._process.join()


def measured(kind: str, seeds: list[bytes], options: argparse.Namespace) -> dict[str, object]:
    """Read ``--count`` damaged files of one format; return the counts of their outcomes."""
    worker = Worker(options.seconds, options.megabytes)
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"damaged.{kind}")
        for number in range(options.count):
            rng = random.Random(f"{options.seed} {kind} {number}")
            data = damaged(rng.choice(seeds), rng)
            path.write_bytes(data)
            begin = time.perf_counter()
            outcome, detail = worker.outcome(path)
            slowest = max(slowest, time.perf_counter() - begin)
            outcomes[outcome] += 1
            if outcome in FAILURES:
                failures[f"{outcome}: {detail}"] += 1
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / f"{number}.{kind}").write_bytes(data)
    worker.end()
    return {
        "seeds": len(seeds),
        "outcomes": dict(outcomes),
        "failures": dict(failures),
        "slowest_seconds": round(slowest, 2),
        "peak_megabytes": worker.peak_megabytes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="+", metavar="FORMAT", help="file name extensions")
    parser.add_argument("--count", type=int, default=2000, help="damaged files of each format")
    parser.add_argument("--seeds", type=Path, help="a folder with whole files, NAME.FORMAT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--keep", type=Path, help="write the failing files into this folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = {}
    for kind in options.formats:
        if options.seeds:
            seeds = [path.read_bytes() for path in sorted(options.seeds.glob(f"*.{kind}"))]
        else:
            seeds = BUILT[kind]() if kind in BUILT else []
        if not seeds:
            parser.error(f"no whole {kind} files; name a folder that has some with --seeds")
        report[kind] = measured(kind, seeds, options)
        print(kind, json.dumps(report[kind]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(result["failures"] for result in report.values()))


if __name__ == "__main__":
    sys.exit(main())
