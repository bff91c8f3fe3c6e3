"""Evidence of files names the page, or the sheet and the row, on the bundled model."""

from __future__ import annotations

import random

import openpyxl
import pytest

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.evals.prose import king_james
from tests.documents.files import pdf_bytes, written

KEY = "The pass key is 48213. Remember it. 48213 is the pass key."
QUESTION = "What is the pass key?"
PAGES = 6


@pytest.fixture(scope="module")
def bundled():
    return LongContextLLM.bundled()


def found_in(llm, path):
    answer = llm.read(Document.from_file(path)).ask(QUESTION)
    assert answer.text.strip() == "48213"
    return answer.evidence[0].location


def page(rng, statement=""):
    """Prose, with a statement between two of its lines."""
    start = rng.randrange(100_000)
    words = king_james()[start : start + 700].split()[1:-1]
    lines = [" ".join(words[n : n + 12]) for n in range(0, len(words), 12)]
    lines.insert(rng.randint(0, len(lines)), statement)
    return "\n".join(line for line in lines if line)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, PAGES + 1))
def test_each_page_of_a_pdf_is_named(bundled, tmp_path, number):
    """The first and the last one too, and wherever on it the fact is."""
    rng = random.Random(number)
    pages = [page(rng, KEY * (n == number)) for n in range(1, PAGES + 1)]
    path = written(tmp_path, "key.pdf", pdf_bytes(*pages))
    assert found_in(bundled, path) == f"page {number}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sheet", "row"), [("Costs", 2), ("Costs", 19), ("Staff", 11), ("Stock", 24)]
)
def test_the_sheet_and_the_row_of_a_workbook_are_named(bundled, tmp_path, sheet, row):
    """Rows are counted as the program that made them shows them, empty ones included."""
    rng = random.Random(row)
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name in ("Costs", "Staff", "Stock"):
        made = book.create_sheet(name)
        for number in (1, *range(2, 12), *range(15, 26)):  # 12 to 14 are empty
            note = KEY if (name, number) == (sheet, row) else f"paid in {rng.randint(1900, 2000)}"
            for column, value in enumerate((f"item {number}", rng.randint(2, 900), note), 1):
                made.cell(number, column, value)
    path = tmp_path / "key.xlsx"
    book.save(path)
    assert found_in(bundled, path) == f"sheet {sheet}, row {row}"
