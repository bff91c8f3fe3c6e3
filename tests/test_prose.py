"""Comments, docstrings, messages and pages use the field's terms, not this project's old words."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD_WORDS = re.compile(
    r"\b(rooms?|pieces?|stands?|stood|beside|whoever|who asks|told|held to|anew|wind back"
    r"|wound back|let(s|ting)? go of|gives? way|gave way|go(es)? on with|went on with|lent|lends?"
    r"|objections?|complains?|in words|turn-taking|(its|their|own|whose|this|that|take a) turns?"
    r"|(take|takes|taking) turns)\b",
    re.IGNORECASE,
)
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")
SOURCES = ("selfextend_rag", "integrations", "examples", "benchmarks", "training")

# Documents, and the words of the texts that the bundled model was trained on.
NOT_OURS = (
    "examples/documents",
    "selfextend_rag/evals/data",
    "training/wordings.py",
    "training/questions.py",
    "training/samples.py",
)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each comment and string, or of a page's lines."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            text = token.string
            if text[0] in "fF":  # of an f-string, the text alone
                text = re.sub(r"{[^{}]*}", "", text)
            yield from enumerate(text.splitlines(), token.start[0])


def directories() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in (*PAGES, *SOURCES):
        place = ROOT / name
        for path in sorted([place] if place.is_file() else place.rglob("*")):
            relative = path.relative_to(ROOT).as_posix()
            if path.suffix in (".py", ".md") and not relative.startswith(NOT_OURS):
                found.setdefault(Path(relative).parent.as_posix(), []).append(path)
    return found


@pytest.mark.parametrize("directory", sorted(directories()))
def test_no_old_word_is_left(directory: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word[0]}"
        for path in directories()[directory]
        for number, line in prose_of(path)
        for word in OLD_WORDS.finditer(line)
    ]
    assert not found, "\n".join(found)


def test_strings_and_comments_are_read_and_names_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('"""A room."""\nanew = f"told {anew}"  # beside\ndef pieces(): ...\n')
    words = [w[0] for _, line in prose_of(path) for w in OLD_WORDS.finditer(line)]
    assert words == ["room", "told", "beside"]
