"""The pages for people who come from elsewhere: every name is there, and every row is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from selfextend_rag.llm import frameworks

DOCS = Path(__file__).parent.parent / "docs"
FIELDS = {"model", "tokenizer", "dtype", "device_map", "model_options", "stop", "timeout"} | {
    "temperature", "top_k", "top_p", "seed", "max_tokens", "quantization_config",
}  # fmt: skip


def rows(heading):
    """The cells of the tables under a heading of docs/migration.md."""
    part = (DOCS / "migration.md").read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines]


def option(cell):
    """The option that a cell begins with, with its example as a value."""
    source = re.match(r"`(.+?)`(,|$)", cell)[1]
    return eval(f"dict({source})", {"__builtins__": {"dict": dict, "object": object}})


@pytest.mark.parametrize("row", rows("Options that are taken"), ids=lambda row: row[0][:24])
def test_options_that_are_taken_become_what_the_page_says(row):
    given = option(row[0])
    found = frameworks.sort_options(given, FIELDS)
    (became,) = found.get("context_options", found)
    inner = next(iter(given.values()))
    named = [became, *(inner if isinstance(inner, dict) else ())]
    assert f"`{became}`" in row[1] or (row[1] == "the options in it" and became in named)


@pytest.mark.parametrize("row", rows("Options that are refused"), ids=lambda row: row[0][:24])
def test_options_that_are_refused_are_so_by_name(row):
    given = option(row[0])
    with pytest.raises(frameworks.OptionError, match=next(iter(given))):
        frameworks.sort_options(given, FIELDS)


@pytest.mark.parametrize("row", rows("Options that are refused"), ids=lambda row: row[0][:24])
def test_their_other_names_are_refused_too(row):
    for name in re.findall(r"`(\w+)`", row[0]):
        with pytest.raises(frameworks.OptionError, match=name):
            frameworks.sort_options({name: 7}, FIELDS)


@pytest.mark.parametrize(
    "package", ["selfextend_rag", "langchain_selfextend", "llama_index.llms.selfextend"]
)
def test_the_reference_names_all_that_is_public_and_nothing_else(package):
    module = pytest.importorskip(
        package, reason="its framework is not installed", exc_type=ImportError
    )
    page = (DOCS / "reference.md").read_text("utf-8")
    part = page.split(f"## `{package}`\n")[1].split("\n## ")[0]
    names = re.findall(r"^\* \*\*`(\w+)`\*\*", part, re.MULTILINE)
    assert names == sorted(module.__all__), "run python docs/generate_reference.py"
    owner = module
    for method, name in re.findall(r"^  \* `(\w+)`|^\* \*\*`(\w+)`\*\*", part, re.MULTILINE):
        owner = getattr(module, name) if name else owner
        assert not method or hasattr(owner, method)
