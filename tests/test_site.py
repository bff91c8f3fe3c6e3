"""The documentation site: its pages, its pictures, and what a built site is checked for."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
PICTURES = ROOT / "docs" / "concepts" / "pictures"


def load(name):
    """Return a script of docs/site as a module."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    pytest.importorskip("langchain_core", reason="the API reference imports the integrations")
    pytest.importorskip("llama_index.core", reason="the API reference imports the integrations")
    folder = tmp_path_factory.mktemp("site")
    load("stage").stage(folder)
    return folder


def test_every_page_is_in_the_navigation_and_the_other_way_round(staged):
    pages = {path.relative_to(staged).as_posix() for path in staged.rglob("*.md")}
    configured = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
    named = set(re.findall(r": (\S+\.md)$", configured, re.MULTILINE))
    assert not pages - named, "give each of these a line under nav in mkdocs.yml"
    assert not named - pages, "take these out of nav in mkdocs.yml"


def test_links_of_the_repository_are_links_of_the_site(staged):
    """A page links to another page, to a file elsewhere in the repository, and to README."""
    stage = load("stage")
    found = 0
    for page in staged.rglob("*.md"):
        for match in stage.LINK.finditer(stage.CODE.sub("", page.read_text("utf-8"))):
            assert (page.parent / match["path"]).is_file(), f"{page.name} links to {match['path']}"
            found += 1
    assert found > 60
    assert "](repository/CONTRIBUTING.md)" in (staged / "index.md").read_text("utf-8")
    evidence = (staged / "evidence.md").read_text("utf-8")
    assert "](repository/benchmarks/results/evidence.json)" in evidence


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, monkeypatch):
    stage = load("stage")
    (tmp_path / "README.md").write_text("[x](nowhere.md)")
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"README.md links to nowhere.md"):
        stage.stage(tmp_path / "out")


def test_code_is_left_as_it_is_and_links_to_folders_become_text(tmp_path, monkeypatch):
    stage = load("stage")
    (tmp_path / "docs").mkdir()
    (tmp_path / "runs").mkdir()
    text = "---\nfield: 1\n---\nSee [runs](../runs).\n\n```text\n[a](b.md)\n```\n"
    (tmp_path / "docs" / "page.md").write_text(text)
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    assert stage.page("docs/page.md") == "See runs.\n\n```text\n[a](b.md)\n```\n"


def test_the_reference_names_all_public_classes_and_functions(staged):
    import langchain_selfextend

    page = (staged / "api" / "langchain_selfextend.md").read_text("utf-8")
    for name in langchain_selfextend.__all__:
        assert f"\n::: langchain_selfextend.{name}\n" in page


@pytest.mark.parametrize("name", ["matrix", "distances", "budget", "pairs", "cost"])
def test_pictures_are_what_their_script_draws_now(name):
    drawn = load("pictures").DRAWN
    assert len(drawn) == 5
    assert (PICTURES / f"{name}.svg").read_text("utf-8") == drawn[name]()


def test_the_matrix_holds_the_relative_positions_of_the_paper():
    """Redone here, so that a wrong picture can't agree with wrong arithmetic."""
    expected = [
        q - k if q - k < 6 else q // 3 + 6 - 2 - k // 3 for q in range(14) for k in range(q + 1)
    ]
    drawn = re.findall(r'class="on small"[^>]*>(\d+)<', load("pictures").matrix())
    assert [int(number) for number in drawn] == expected


def test_no_picture_asks_another_host_for_anything():
    pictures = sorted(PICTURES.glob("*.svg"))
    assert len(pictures) == 6
    for picture in pictures:
        text = picture.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http" not in text, picture.name


def test_the_screenshot_is_of_the_command_in_readme_and_shows_what_it_prints():
    screenshot = load("screenshot")
    shown = screenshot.PICTURE.read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    first = f'$ {" ".join(screenshot.COMMAND[:-1])} "{screenshot.QUESTION}"'
    assert first in readme
    now = screenshot.terminal(screenshot.printed())
    rows = [re.findall(r'<text class="(\w+)"[^>]*>([^<]*)<', text) for text in (shown, now)]
    committed, again = ([(kind, words(said)) for kind, said in found] for found in rows)
    assert [said for kind, said in committed if kind == "answer"] == [["Euphrates"]]
    assert [said for kind, said in again if kind == "answer"] == [["Euphrates"]]
    assert committed[0] == again[0]
    assert ["Read", "tokens", "in", "s", "a", "second"] in [said for _, said in committed]


def words(text):
    """The words of a line, without its figures, which differ from run to run."""
    return re.findall(r"[A-Za-z]+", text)


PAGE = '<link href="a.css"><script src="{script}"></script><a href="https://x.org/">x</a>'


@pytest.mark.parametrize(
    ("page", "sheet", "fault"),
    [
        (PAGE.format(script="a.js"), "", None),
        (PAGE.format(script="https://x.org/a.js"), "", "page.html asks another host for https://x"),
        (PAGE.format(script="//x.org/a.js"), "", "page.html asks another host for //x.org/a.js"),
        (PAGE.format(script="b.js"), "", "page.html leads to b.js, which is not there"),
        ("<p style='background: url(http://x.org/a.png)'>", "", "page.html asks another host"),
        ("<style>@import 'https://x.org/a.css'</style>", "", "page.html asks another host"),
        ("", "@font-face { src: url(https://x.org/a.woff2) }", "a.css asks another host for"),
        ("<a href='page.html#x'>x</a><a href='#y'>y</a><a href='mailto:a@x.org'>z</a>", "", None),
    ],
)
def test_a_built_site_is_checked_for_other_hosts_and_dead_links(tmp_path, page, sheet, fault):
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "a.css").write_text(sheet)
    (tmp_path / "a.js").write_text("")
    found = load("check").faults(tmp_path)
    assert found == [] if fault is None else len(found) == 1 and found[0].startswith(fault)


def test_the_scripts_of_the_site_are_run_by_make_docs():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for script in ("stage", "check"):
        assert f"docs/site/{script}.py" in makefile
    assert "check docs" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_make_keeps_what_python_compiled(monkeypatch):
    """Where the environment said not to, each process of the tests compiled torch for 15 s."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    command = ["make", "--silent", "--eval", "environment: ; @env", "environment"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "HF_HUB_OFFLINE=1" in shown
    assert "PYTHONDONTWRITEBYTECODE" not in shown
