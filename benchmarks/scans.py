"""Recognise made scans whose words are known, and count those that come out.

    python benchmarks/scans.py
    python benchmarks/scans.py --tesseract eng+deu+fra+pol

Pages are of one text in several fonts, sizes and languages, as pictures of 300 dots for each inch,
upright, askew, blurred, noisy and grey. ``--tesseract`` gives the same pictures to the program of
that name, which has to be installed with these languages. Recall is the part of a page's words that
come out, each as often as it is there; precision the part of what comes out that is there. Times
are seconds of one core, the start of the process included.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import re
import resource
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path

import matplotlib
import numpy as np
import pypdfium2 as pdfium
from PIL import Image, ImageFilter
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from selfextend_rag import Document, DocumentError

FOLDER = Path(__file__).parents[1] / "examples" / "documents"
LANGUAGES = {
    "German": "Die Prüfung der Pumpe muß zweimal erfolgen, bevor sie wieder in Betrieb genommen "
    "wird, weil während einer längeren Pause Wasser eingedrungen sein könnte. Zwei Personen "
    "unterschreiben das Protokoll. Die Kosten betragen 12,50 € je Stunde und 84 € je Dichtung.",
    "French": "L'épreuve de la pompe doit être répétée avant la remise en marche, car l'eau a pu "
    "pénétrer pendant l'arrêt. Deux personnes signent le procès-verbal et conservent une copie. Le "
    "coût s'élève à 12,50 € par heure et à 84 € pour chaque joint neuf, où qu'il soit posé.",
    "Polish": "Pompę należy sprawdzić dwukrotnie przed ponownym uruchomieniem, ponieważ podczas "
    "dłuższej przerwy mogła dostać się woda. Dwie osoby podpisują protokół. Łączny koszt wynosi "
    "12,50 zł za godzinę oraz 84 zł za każdą nową uszczelkę zgodnie z umową.",
}
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSans-Bold", "STIXGeneral")
Case = tuple[str, str, str, float, dict[str, float]]  # name, text, font, size, wear


def cases() -> list[Case]:
    english = " ".join((FOLDER / "elements.md").read_text().replace("#", " ").split())
    fonts = ("Helvetica", "Times-Roman", "Courier", *FONTS)
    plain: dict[str, float] = {}
    return [
        *((f"{font} 11", english, font, 11, plain) for font in fonts),
        *((f"Times {size}", english, "Times-Roman", size, plain) for size in (6, 8, 10, 16, 24)),
        *((f"askew by {a}", english, "Times-Roman", 11, {"angle": a}) for a in (0.5, 1, 2, 4)),
        *((f"{dpi} dpi", english, "Times-Roman", 10, {"dpi": dpi}) for dpi in (100, 150, 200)),
        *(
            (f"blur {b}, noise {n}", english, "Helvetica", 10, {"blur": b, "noise": n, "dpi": 200})
            for b, n in ((1, 10), (1, 30), (1.5, 30), (2, 40), (2.5, 40), (3, 50))
        ),
        *((name, text, "DejaVuSerif", 11, plain) for name, text in LANGUAGES.items()),
    ]


def page(text: str, font: str, size: float) -> tuple[bytes, list[str]]:
    """Return a page with 20 lines of this text, again and again, and its words."""
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=A4)
    canvas.setFont(font, size)
    given, shown = text.split(), []
    for number in range(20):
        line: list[str] = []
        while True:
            word = given[(len(shown) + len(line)) % len(given)]
            if canvas.stringWidth(" ".join([*line, word])) > 460:
                break
            line.append(word)
        canvas.drawString(65, 780 - 1.25 * size * number, " ".join(line))
        shown += line
    canvas.save()
    return out.getvalue(), shown


def worn(data: bytes, dpi: float = 300, angle: float = 0, blur: float = 0, noise: float = 0):
    picture = pdfium.PdfDocument(data)[0].render(scale=dpi / 72, grayscale=True).to_pil()
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=255)
    picture = picture.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(picture, dtype=float)
    pixels = pixels + np.random.default_rng(0).normal(-noise, noise, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def recognised(picture: Image.Image, dpi: float) -> tuple[str, str]:
    out = io.BytesIO()
    picture.save(out, "PDF", resolution=dpi, quality=75)
    try:
        document = Document.from_bytes(out.getvalue(), "scan.pdf", ocr=True)
    except DocumentError:
        return "", "refused: no line is sure enough"
    (scan,) = document.metadata["recognised"]
    return document.text, f"{scan['confidence']:.3f} {scan['lowest']:.3f}"


def by_tesseract(picture: Image.Image, dpi: float, languages: str) -> tuple[str, str]:
    out = io.BytesIO()
    picture.save(out, "PNG", dpi=(dpi, dpi))
    done = subprocess.run(
        ["tesseract", "-", "-", "-l", languages],
        input=out.getvalue(),
        capture_output=True,
        check=True,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
    )
    return done.stdout.decode(), "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tesseract", metavar="LANGUAGES", help="such as eng+deu")
    parser.add_argument("--only", default="", help="pages whose name matches this pattern")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for font in FONTS:
        pdfmetrics.registerFont(TTFont(font, folder / f"{font}.ttf"))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("rapidocr", "onnxruntime"))
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores", versions)
    print(f"{'page':24}{'words':>6} recall precision seconds  confidence, lowest")
    total = []
    for name, text, font, size, wear in cases():
        if not re.search(args.only, name):
            continue
        data, known = page(text, font, size)
        picture, dpi = worn(data, **wear), wear.get("dpi", 300)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        if args.tesseract:
            said, sure = by_tesseract(picture, dpi, args.tesseract)
        else:
            said, sure = recognised(picture, dpi)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        expected, found = Counter(known), Counter(said.split())
        common = (expected & found).total()
        total.append((common / len(known), common / max(found.total(), 1), seconds))
        recall, precision, _ = total[-1]
        print(f"{name:24}{len(known):6} {recall:.3f}  {precision:.3f} {seconds:9.1f}   {sure}")
    recall, precision, seconds = np.mean(total, axis=0)
    print(f"{'mean':30} {recall:.3f}  {precision:.3f} {seconds:9.1f}")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    print(f"largest process: {memory} MiB")


if __name__ == "__main__":
    main()
