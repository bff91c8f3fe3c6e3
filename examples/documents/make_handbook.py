"""Writes handbook.pdf, one page for each chapter of handbook.md.

python examples/documents/make_handbook.py
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

SOURCE = Path(__file__).with_name("handbook.md")


def handbook(source: str) -> FPDF:
    """Return the pages of a Markdown text: a title page, then one page for each second heading."""
    pdf = FPDF(format=(148, 210))
    pdf.set_creation_date(datetime(2026, 1, 1, tzinfo=UTC))  # the same file each time
    pdf.set_title(source.splitlines()[0].lstrip("# "))
    for chapter in source.split("\n## "):
        heading, *paragraphs = chapter.strip().split("\n\n")
        pdf.add_page()
        pdf.set_font("Times", "B", 16)
        pdf.multi_cell(0, 10, heading.lstrip("# "), new_x="LMARGIN", new_y="NEXT")
        pdf.set_font("Times", size=11)
        for paragraph in paragraphs:
            text = " ".join(paragraph.split())
            pdf.multi_cell(0, 5.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
            pdf.ln(3)
    return pdf


if __name__ == "__main__":
    handbook(SOURCE.read_text("utf-8")).output(str(SOURCE.with_suffix(".pdf")))
