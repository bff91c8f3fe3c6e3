"""Runs the command that README begins with, and draws what it prints as a terminal: terminal.svg.

python docs/site/screenshot.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "concepts" / "pictures" / "terminal.svg"
QUESTION = "What is the fourth river?"
COMMAND = ("selfextend-rag", "ask", "examples/documents/genesis.txt", "-q", QUESTION)
COLUMNS, WIDTH, HEIGHT = 96, 7.85, 19  # a line, and a character in it, in pixels
STYLE = """
rect { fill: #1e2129 } text { font: 13px monospace; fill: #d6dae4 }
.typed { fill: #ffffff; font-weight: bold } .answer { fill: #8fd18b } circle { fill: #4b5163 }
"""


def printed() -> str:
    """Return what the command prints, on both streams, in the order it came.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    places = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "selfextend_rag", *COMMAND[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return "\n".join(line.rpartition("\r")[2] for line in done.stdout.strip().split("\n"))


def terminal(output: str) -> str:
    """Return a terminal, as SVG, with the command and its output; long lines are wrapped."""
    typed = f"$ {' '.join(COMMAND[:-1])} {QUESTION!r}".replace("'", '"')
    rows = [("typed", typed), ("", "")]
    for line in output.split("\n"):
        kind = "answer" if line == answer(output) else "output"
        for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ") or [""]:
            rows.append((kind, part))
    width, height = round(COLUMNS * WIDTH) + 40, len(rows) * HEIGHT + 60
    marks = [
        f'<text class="{kind}" xml:space="preserve" x="20" y="{56 + HEIGHT * number}">'
        f"{escape(said)}</text>"
        for number, (kind, said) in enumerate(rows)
    ]
    dots = [f'<circle cx="{24 + 20 * number}" cy="20" r="6"/>' for number in range(3)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(typed)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="8"/>',
            *dots,
            *marks,
            "</svg>\n",
        ]
    )


def answer(output: str) -> str:
    """Return the line before the first passage of the evidence, which is indented."""
    lines = output.split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("  "))
    return lines[first - 1]


if __name__ == "__main__":
    PICTURE.write_text(terminal(printed()), "utf-8")
