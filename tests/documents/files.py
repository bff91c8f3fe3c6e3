"""Files that the tests of documents read."""

from __future__ import annotations

import io
from pathlib import Path

import pikepdf
from fpdf import FPDF

FRENCH = "Le café de la gare est fermé à midi. Les élèves rentrèrent chez eux, très fatigués.\n"


def written(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pdf_bytes(*pages: str, title: str | None = None) -> bytes:
    """A PDF with one page for each text; an empty text makes a page that is only a drawing."""
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    if title:
        pdf.set_title(title)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 8, text)
        else:
            pdf.rect(20, 20, 100, 100)
    return bytes(pdf.output())


def encrypted(data: bytes, user_password: str, algorithm: str) -> bytes:
    revision = {"RC4-128": 3, "AES-128": 4, "AES-256": 6}[algorithm]
    lock = pikepdf.Encryption(
        user=user_password, owner="owner", R=revision, aes=revision > 3, metadata=revision > 3
    )
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(data)) as pdf:
        pdf.save(out, encryption=lock)
    return out.getvalue()
