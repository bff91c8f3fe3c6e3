"""Turn Debian documentation packages into training prose, word lists and the tokenizer.

The packages (all with licences that leave shipped weights free; see the model card) are fetched
with ``apt-get download`` by ``fetch_prose.sh`` and unpacked below ``runs/raw/x/PACKAGE``. Then::

    python -m training.prepare

writes ``runs/data``: ``prose.npy`` (token ids), ``sentences.npy`` (where sentences start),
``paragraphs.npy`` (where paragraphs start), ``words.json``, and ``tokenizer.json``. Texts
that the evaluation uses (the King James Bible, The Devil's Dictionary) are not read here.
"""

import argparse
import gzip
import html.parser
import json
import logging
import random
import re
from pathlib import Path

import numpy as np

from training.tokenizer import (
    VOCABULARY,
    save_tokenizer,
    train_tokenizer,
    with_words_after_no_space,
)

log = logging.getLogger(__name__)

CHARACTERS_PER_SOURCE = 3_000_000
SENTENCE_BORDER = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


class ParagraphParser(html.parser.HTMLParser):
    """Collects the text of p, li and dd elements, without code blocks, menus and scripts."""

    SKIPPED = frozenset({"script", "style", "pre", "table", "nav", "head", "footer"})
    BLOCKS = frozenset({"p", "li", "dd", "dt", "div", "h1", "h2", "h3", "h4", "ul", "ol", "td"})

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._pieces: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SKIPPED:
            self._skipping += 1
        if tag in self.BLOCKS:
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIPPED and self._skipping:
            self._skipping -= 1
        if tag in self.BLOCKS:
            self._flush()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._pieces.append(data)

    def _flush(self) -> None:
        self.paragraphs.append("".join(self._pieces))
        self._pieces.clear()


def html_paragraphs(folder: Path) -> list[str]:
    """Return the paragraphs of all HTML files below a folder, in the order of their names."""
    found: list[str] = []
    for path in sorted(folder.rglob("*.html")):
        parser = ParagraphParser()
        parser.feed(path.read_text(encoding="utf-8", errors="ignore"))
        parser.close()
        found += parser.paragraphs
    return found


def text_paragraphs(text: str) -> list[str]:
    """Return the parts of a plain text that empty lines separate."""
    return re.split(r"\n\s*\n", text)


def wordnet_paragraphs(folder: Path) -> list[str]:
    """Return WordNet's glosses, some in each paragraph, as sentences."""
    glosses = []
    for part in ("noun", "verb", "adj"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            word = line.split()[4].replace("_", " ")
            gloss = line.split("|", 1)[1].strip().replace('"', "").rstrip(".")
            glosses.append(f"{word[:1].upper()}{word[1:]}: {gloss}.")
    random.Random(0).shuffle(glosses)
    return [" ".join(glosses[i : i + 5]) for i in range(0, len(glosses), 5)]


def sources(raw: Path) -> dict[str, list[str]]:
    """Return raw paragraphs by the name of their package."""
    doc = "usr/share/doc"
    vim = sorted((raw / "vim-runtime/usr/share/vim").rglob("doc/*.txt"))
    return {
        "sqlite3-doc": html_paragraphs(raw / f"sqlite3-doc/{doc}/sqlite3"),
        "python3.11-doc": html_paragraphs(raw / f"python3.11-doc/{doc}/python3.11/html"),
        "apache2-doc": html_paragraphs(raw / f"apache2-doc/{doc}/apache2-doc/manual/en"),
        "postgresql-doc-15": html_paragraphs(raw / f"postgresql-doc-15/{doc}"),
        "vim-runtime": [
            p for path in vim for p in text_paragraphs(path.read_text("utf-8", "ignore"))
        ],
        "dict-jargon": text_paragraphs(
            gzip.open(raw / "dict-jargon/usr/share/dictd/jargon.dict.dz").read().decode("utf-8")
        ),
        "wordnet-base": wordnet_paragraphs(raw / "wordnet-base/usr/share/wordnet"),
    }


def clean(paragraphs: list[str], limit: int) -> list[str]:
    """Return paragraphs of plain English prose, each once, up to ``limit`` characters in all."""
    kept: dict[str, None] = {}
    size = 0
    for paragraph in paragraphs:
        text = " ".join(paragraph.replace("\u2019", "'").replace("\u00b6", "").split())
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text) < 80 or not text.isascii() or letters < 0.88 * len(text) or text in kept:
            continue
        kept[text] = None
        size += len(text)
        if size > limit:
            break
    return list(kept)


def word_lists(prose: list[str], raw: Path) -> dict[str, list[str]]:
    """Return words for facts: common prose words, and WordNet's nouns and proper names."""
    counts: dict[str, int] = {}
    for paragraph in prose:
        for word in re.findall(r"[a-z]{3,12}", paragraph):
            counts[word] = counts.get(word, 0) + 1
    nouns, names = [], []
    for line in (raw / "wordnet-base/usr/share/wordnet/index.noun").read_text().splitlines():
        word = line.split(" ", 1)[0]
        if re.fullmatch(r"[a-z]{3,11}", word):
            nouns.append(word)
    for line in (
        (raw / "wordnet-base/usr/share/wordnet/data.noun").read_text("latin-1").splitlines()
    ):
        if not line.startswith("  ") and re.fullmatch(r"[A-Z][a-z]{2,10}", line.split()[4]):
            names.append(line.split()[4])
    common = sorted(w for w, n in counts.items() if n >= 5)
    known = set(nouns)
    return {
        "words": common,
        "nouns": sorted(w for w in counts if w in known and counts[w] >= 2),
        "rare_nouns": sorted(nouns),
        "names": sorted(set(names)),
    }


def main() -> None:
    """Write everything that training reads."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, default=Path("runs/raw/x"))
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    prose: list[str] = []
    for name, found in sources(args.raw).items():
        paragraphs = clean(found, CHARACTERS_PER_SOURCE)
        log.info("%-20s %8d characters", name, sum(map(len, paragraphs)))
        prose += paragraphs
    words = word_lists(prose, args.raw)
    (args.data / "words.json").write_text(json.dumps(words))
    log.info("%s", {name: len(entries) for name, entries in words.items()})
    tokenizer = with_words_after_no_space(
        train_tokenizer(
            [*prose, " ".join(words["names"]), " ".join(words["nouns"])], args.vocabulary
        )
    )
    save_tokenizer(tokenizer, args.data)
    random.Random(1).shuffle(prose)  # paragraphs of all sources mixed, in runs of one
    ids: list[int] = []
    sentence_starts: list[int] = []
    paragraph_starts: list[int] = []
    border = tokenizer.encode("\n\n", add_special_tokens=False).ids
    for paragraph in prose:
        paragraph_starts.append(len(ids))
        sentences = SENTENCE_BORDER.split(paragraph)
        texts = [s if i == 0 else f" {s}" for i, s in enumerate(sentences)]
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            sentence_starts.append(len(ids))
            ids += encoding.ids
        ids += border
    np.save(args.data / "prose.npy", np.array(ids, dtype=np.uint16))
    np.save(args.data / "sentences.npy", np.array(sentence_starts, dtype=np.int64))
    np.save(args.data / "paragraphs.npy", np.array(paragraph_starts, dtype=np.int64))
    log.info("%d tokens, %d sentences", len(ids), len(sentence_starts))


if __name__ == "__main__":
    main()
