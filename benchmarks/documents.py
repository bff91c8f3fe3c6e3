"""Seconds and memory that reading a long PDF takes.

    python benchmarks/documents.py [--pages 619] [--file REPORT.pdf]

Without ``--file``, a PDF of so many pages of text is made first. It is read three times; the best
time counts, of the clock and of the processor (of this process and the one that reads). Memory is
the most that the process that reads has held, of which Python and pdfium alone take about 20 MB.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from selfextend_rag import Document

SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi wo zu".split()  # noqa: SIM905  # a list of syllables is longer


def long_pdf(pages: int) -> bytes:
    """A PDF whose pages are full: about 3,200 characters each, in 54 lines."""
    from fpdf import FPDF

    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(5000)]
    pdf = FPDF()
    pdf.set_font("times", size=10)
    for _ in range(pages):
        pdf.add_page()
        pdf.multi_cell(0, 4.8, " ".join(rng.choices(words, k=540)))
    return bytes(pdf.output())


def processor_seconds() -> float:
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=619)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder, "long.pdf")
        if not options.file:
            path.write_bytes(long_pdf(options.pages))
        times, processor = [], []
        for _ in range(3):
            begin, used = time.perf_counter(), processor_seconds()
            document = Document.from_file(path)
            times.append(time.perf_counter() - begin)
            processor.append(processor_seconds() - used)
        report = {
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "pypdfium2": version("pypdfium2"),
            "file_megabytes": round(path.stat().st_size / 1e6, 1),
            "pages": document.metadata["pages"],
            "characters": len(document.text),
            "seconds": round(min(times), 2),
            "processor_seconds": round(min(processor), 2),
            "peak_megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
            "remarks": [remark.message for remark in document.remarks],
        }
    for name, value in report.items():
        print(f"{name:18} {value}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
