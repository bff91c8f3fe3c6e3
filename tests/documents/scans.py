"""Scans whose words are known, and a recogniser in place of the library's."""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path

import numpy as np
import pypdfium2 as pdfium
import pytest
from PIL import Image, ImageFilter

_FAKE = """
import json, pathlib, types

class RapidOCR:
    def __init__(self, params): pass

    def __call__(self, picture):
        said = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
        if isinstance(said, str):
            scope = {"picture": picture}
            exec(said, scope)
            said = scope["said"]
        corners = [[(x, y), (x + 15 * len(text), y), (x + 15 * len(text), y + 20), (x, y + 20)]
                   for x, y, text, _ in said]
        texts, scores = [line[2] for line in said], [line[3] for line in said]
        return types.SimpleNamespace(boxes=corners or None, txts=texts or None, scores=scores)
"""


def fake_recogniser(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[tuple[int, int, str, float]] | str
) -> None:
    """Put libraries of these names before the real ones, in this process and those it starts.

    Args:
        folder: where they are written.
        monkeypatch: the test's own.
        said: each line's left and top, text and confidence; or a program that makes it of a
            ``picture``.
    """
    modules = folder / "modules"
    modules.mkdir(exist_ok=True)
    (modules / "onnxruntime.py").write_text("")
    (modules / "rapidocr.py").write_text(_FAKE)
    program = textwrap.dedent(said) if isinstance(said, str) else said
    (modules / "rapidocr.json").write_text(json.dumps(program))
    monkeypatch.syspath_prepend(modules)


def pictures(data: bytes, dpi: int = 200) -> list[Image.Image]:
    """The pages of a PDF, as a scanner sees them."""
    with pdfium.PdfDocument(data) as document:
        return [page.render(scale=dpi / 72, grayscale=True).to_pil() for page in document]


def worn(picture: Image.Image, angle: float = 0, blur: float = 0, noise: float = 0) -> Image.Image:
    """A page that lay askew, out of focus or on a grey glass."""
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=255)
    picture = picture.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(picture, dtype=float)
    pixels = pixels + np.random.default_rng(0).normal(-noise, noise, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def scanned(*pages: Image.Image, dpi: int = 200, quality: int = 70) -> bytes:
    """A PDF of pictures alone."""
    out = io.BytesIO()
    pages[0].save(
        out, "PDF", save_all=True, append_images=pages[1:], resolution=dpi, quality=quality
    )
    return out.getvalue()
