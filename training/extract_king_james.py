"""Write the evaluation's prose: five books of the King James Bible, as paragraphs of verses.

Reads verses from standard input in the form of Debian's ``bible -f`` (package bible-kjv, text from
bible-kjv-text; the translation of 1611 is in the public domain)::

    bible -f Gen1:1-Exo40:38 1Sam1:1-2Sam24:25 Acts1:1-28:31 | python -m training.extract_king_james

The training never reads this text.
"""

import gzip
import re
import sys
from pathlib import Path

OUT = Path("selfextend_rag/evals/data/king-james.txt.gz")
VERSES_IN_PARAGRAPH = 6


def paragraphs(lines: list[str]) -> list[str]:
    """Return verses joined in paragraphs; a chapter starts a new one."""
    found: list[list[str]] = []
    for line in lines:
        match = re.match(r"\S+?(\d+):(\d+) (.*)", line)
        if match is None:
            continue
        verse = int(match.group(2))
        if not found or (verse - 1) % VERSES_IN_PARAGRAPH == 0:
            found.append([])
        found[-1].append(match.group(3).strip())
    return [" ".join(verses) for verses in found]


if __name__ == "__main__":
    text = "\n\n".join(paragraphs(sys.stdin.read().splitlines())) + "\n"
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))
