"""Does evidence name the page, or the sheet and the row? On the bundled model, on a CPU.

    python benchmarks/positions.py [--pages 50] [--rows 20] [--facts 50] [--out FOLDER]

Pages: PDFs (made by fpdf2) of 3 to 14 pages of prose, a pass key on one of them. Rows: workbooks
(openpyxl) of 2 to 4 sheets with 12 to 30 rows of figures each, a pass key in one cell. The place is
right if the first passage names that page, or that sheet and row, and no other.

Facts: PDFs with a number on each of 5 pages, asked for one by one. The place is right if it is the
page that holds what was answered.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import re
import tempfile
import time
from pathlib import Path

import torch
import transformers
from fpdf import FPDF

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.evals.prose import king_james

QUESTION = "What is the pass key?"
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
THINGS = ("access code", "serial number", "price", "height", "weight")
OWNERS = ("Alaric", "Bettina", "Cosmo", "Delphine", "Edmund")


def sentences():
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(king_james().split()))


def pdf_of(pages):
    pdf = FPDF()
    pdf.set_font("helvetica", size=11)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(0, 6, text)
    return bytes(pdf.output())


def page_with(rng, prose, statement):
    """The text of a page: some sentences of prose, and a statement among them."""
    first, count = rng.randrange(len(prose) - 12), rng.randint(4, 9)
    lines = prose[first : first + count]
    lines.insert(rng.randint(0, count), statement)
    return " ".join(line for line in lines if line)


def paged(rng, prose):
    """A PDF with a pass key, the key, and the name of its page."""
    count, key = rng.randint(3, 14), str(rng.randint(10000, 99999))
    chosen = rng.randrange(count)
    pages = [page_with(rng, prose, KEY.format(key=key) * (n == chosen)) for n in range(count)]
    return pdf_of(pages), key, f"page {chosen + 1}"


def workbook(rng, prose):
    """A workbook with a pass key, the key, and the names of its sheet and row."""
    from openpyxl import Workbook

    book, key = Workbook(), str(rng.randint(10000, 99999))
    book.remove(book.active)
    names = rng.sample(("Costs", "Staff", "Travel", "Sales", "Stock"), rng.randint(2, 4))
    chosen, place = rng.choice(names), ""
    for name in names:
        sheet = book.create_sheet(name)
        sheet.append(["Item", "Amount", "Note"])
        rows = rng.randint(12, 30)
        marked = rng.randint(2, rows)
        for row in range(2, rows + 1):
            note = rng.choice(prose)[:40]
            if name == chosen and row == marked:
                note, place = KEY.format(key=key), f"sheet {name}, row {row}"
            sheet.append([rng.choice(OWNERS), rng.randint(2, 900), note])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue(), key, place


def asked(llm, folder, name, data, questions):
    """The answers to questions about a file, read whole."""
    path = folder / name
    path.write_bytes(data)
    reading = llm.read(Document.from_file(path))
    return reading.ask_batch(questions, evidence=True, max_new_tokens=12)


def places(llm, folder, make, count, name):
    """Ask for the pass key of each of some files; count answers and places that are right."""
    prose, found = sentences(), []
    for number in range(count):
        data, key, place = make(random.Random(f"{name} {number}"), prose)
        (answer,) = asked(llm, folder, name, data, [QUESTION])
        named = answer.evidence[0].location if answer.evidence else None
        found.append({"right": answer.text.strip() == key, "place": named == place})
        if named != place:
            found[-1] |= {"named": named, "is": place, "answer": answer.text}
            print(name, number, found[-1], flush=True)
    return {
        "files": count,
        "answered": sum(one["right"] for one in found),
        "place_named": sum(one["place"] for one in found),
        "otherwise": [one for one in found if not one["place"]],
    }


def facts(llm, folder, count):
    """Ask for a number on each page of PDFs; count places of what was answered."""
    prose, right, known, named = sentences(), 0, 0, 0
    for number in range(-(-count // len(THINGS))):
        rng = random.Random(f"facts {number}")
        owners = rng.sample(OWNERS, len(OWNERS))
        values = [str(rng.randint(10000, 99999)) for _ in THINGS]
        stated = zip(THINGS, owners, values, strict=True)
        pages = [page_with(rng, prose, f"The {x} of {y} is {v}.") for x, y, v in stated]
        questions = [f"What is the {x} of {y}?" for x, y in zip(THINGS, owners, strict=True)]
        answers = asked(llm, folder, "facts.pdf", pdf_of(pages), questions)
        for value, answer in zip(values, answers, strict=True):
            said = answer.text.strip()[:5]
            right += said == value
            known += said in values
            page = f"page {values.index(said) + 1}" if said in values else None
            named += page is not None and answer.evidence[0].location == page
    return {"answered": right, "answered_from_a_page": known, "that_page_named": named}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--out", type=Path, help="folder for positions.json")
    args = parser.parse_args()
    llm, started = LongContextLLM.bundled(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = {
            "command": "python benchmarks/positions.py",
            "model": "bundled",
            "window": llm.planner.pretraining_window,
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "pages": places(llm, folder, paged, args.pages, "pages.pdf"),
            "rows": places(llm, folder, workbook, args.rows, "rows.xlsx"),
            "facts": facts(llm, folder, args.facts),
        }
    report["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(report, indent=1))
    if args.out is not None:
        (args.out / "positions.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
