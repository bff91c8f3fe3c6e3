"""What the documentation tells people to type is typed here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.cli import main

ROOT = Path(__file__).parent.parent
PLACES = (
    "*.md",
    "docs/**/*.md",
    "examples/*.md",
    "examples/documents/*.md",
    "selfextend_rag/**/*.md",
)
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"# -> (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
# What takes minutes, or sets up the machine: run by CI itself, or by who measures again. Examples
# are run by tests/examples.
ELSEWHERE = (
    *("make ", "python benchmarks/", "bash benchmarks/", "python -m selfextend_rag.evals", "git "),
    "python examples/",
    *("pip ", "selfextend-rag serve", "selfextend-rag app"),
)
SERVER, REMOTE = "docs/server.md", "docs/remote.md"
SERVED = (SERVER, REMOTE)  # their snippets need a server: tests/serve/test_docs.py


def blocks(language):
    for page in PAGES:
        for number, found in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            if found[1] == language and page not in [ROOT / name for name in SERVED]:
                yield pytest.param(found[2], id=f"{page.relative_to(ROOT)}-{number}")


def commands():
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text("utf-8")):
            if found[1] in ("console", "sh", "bash"):
                for line in found[2].replace("\\\n", " ").splitlines():
                    if line.startswith("$ "):
                        marks = [pytest.mark.slow] if " calibrate " in line else []
                        name = f"{page.name}: {line[2:50]}"
                        yield pytest.param(line[2:], id=name, marks=marks)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path))


@pytest.mark.parametrize("source", list(blocks("python")))
def test_python_snippets_run_and_print_what_they_say(source, capsys):
    """``# -> text`` is a part of what is printed up to there; ``...`` is anything.

    A snippet of README printed a pass key that its document did not hold, and only its exit code
    was looked at.
    """
    exec(compile(source, "snippet", "exec", dont_inherit=True), {"__name__": "snippet"})
    out, promised = capsys.readouterr().out, PRINTED.findall(source)
    assert promised or "print(" not in source, "say what it prints, by # -> text"
    parts = [re.escape(part.strip()) for text in promised for part in text.split("...")]
    assert re.search(".*?".join(parts), out, re.DOTALL), out


@pytest.mark.parametrize("command", list(commands()))
def test_commands_run_as_written(command, capsys):
    if command.startswith(ELSEWHERE):
        target = shlex.split(command)[1]
        if command.startswith("make "):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")
        if target.endswith((".py", ".sh")):
            assert (ROOT / target).exists()
        return
    program, *arguments = shlex.split(command)
    if program == "python":
        assert arguments[:2] == ["-m", "selfextend_rag"], command
        arguments = arguments[2:]
    else:
        assert program == "selfextend-rag", command
    assert main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_example_has_a_row_with_its_command_and_a_test_that_runs_it():
    page = (ROOT / "examples/README.md").read_text("utf-8")
    tests = "".join(path.read_text("utf-8") for path in ROOT.glob("tests/examples/test_*.py"))
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"notebook.py"}
    notebooks = {path.name for path in (ROOT / "examples").glob("*.ipynb")}
    assert len(scripts) >= 7
    rows = re.findall(
        r"^\| `python examples/(?:notebook.py examples/)?(\S+)` \|", page, re.MULTILINE
    )
    assert sorted(rows) == sorted(scripts | notebooks)
    for name in scripts | notebooks:
        assert name in tests or f'"{name.removesuffix(".py")}"' in tests, f"no test runs {name}"


def test_the_table_of_documents_has_their_counts_and_what_the_bundled_model_answers():
    """They were typed, and stayed as they were when another model came."""
    llm, folder = LongContextLLM.bundled(), ROOT / "examples/documents"
    lines = (folder / "README.md").read_text("utf-8").splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    rows = [row for row in table if not row[0] or row[0].startswith("`")]
    assert len(rows) == 7
    for name, _, words, tokens, question, _, answer in rows:
        if name:
            path = folder / name.strip("`")
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            documents = [Document.from_file(file) for file in files]
            assert words == _range(len(each.text.split()) for each in documents)
            assert tokens == _range(llm.plan([each]).prompt_tokens for each in documents)
        given = llm.read(documents[-1]).ask(question, max_new_tokens=24).text
        assert re.sub(r" \(.*?\)", "", answer) == given.strip()
        if path.name == "genesis.txt":
            assert f"({tokens} of its tokens)" in (ROOT / "README.md").read_text("utf-8")


def _range(numbers):
    least, most = (f"{pick(kept):,}" for kept in [[*numbers]] for pick in (min, max))
    return least if least == most else f"{least} to {most}"
