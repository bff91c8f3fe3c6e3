"""The page of the web app, without a browser: its files fit together, and hold nothing unsafe.

What a browser makes of it is in test_browser.py.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "selfextend_rag" / "serve" / "web" / "static"
HTML = (FOLDER / "index.html").read_text("utf-8")
STYLE = (FOLDER / "app.css").read_text("utf-8")
SCRIPTS = {  # by their paths below scripts/
    path.relative_to(FOLDER / "scripts").as_posix(): path.read_text("utf-8")
    for path in sorted((FOLDER / "scripts").rglob("*.js"))
}

VOID = frozenset(("br", "hr", "img", "input", "link", "meta"))
CONTROLS = frozenset(("input", "textarea", "select"))
SVG = "http://www.w3.org/2000/svg"  # a name, which nothing is fetched from

# What would read text as HTML or code, or be refused by the page's Content-Security-Policy.
UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|srcdoc"
    r"|DOMParser|\beval\s*\(|new Function|setTimeout\(\s*[\"'`]|cssText"
    r"|setAttribute\(\s*[\"'](?:style|on)|\bstyle:|javascript:|import\s*\("
)
ELSEWHERE = re.compile(r"(?:https?:|wss?:)?//[\w.-]+\.\w+|@import|url\(")
LEFT_BEHIND = re.compile(r"console\.\w+|\bdebugger\b|\balert\(")
IMPORT = re.compile(r"import\s+(?:\*\s+as\s+(\w+)|\{([^}]*)\})\s+from\s+\"(\.[\w./]+)\";")
EXPORT = re.compile(r"^export\s+(?:async\s+)?(?:function\*?|const|let|class)\s+(\w+)", re.M)
LOOKED_UP = re.compile(r"(?:byId|getElementById)\(\"([^\"]+)\"\)")
MADE = re.compile(r"\bid: \"([^\"]+)\"")  # by scripts


class Page(HTMLParser):
    """The elements of a page, and what is wrong with how they nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []
        self.open: list[str] = []
        self.labelled_within: set[int] = set()

    def handle_starttag(self, tag, attrs):
        if "label" in self.open:
            self.labelled_within.add(len(self.elements))
        self.elements.append((tag, dict(attrs)))
        if len(dict(attrs)) < len(attrs):
            self.wrong.append(f"{self.getpos()}: an attribute twice in {tag}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{self.getpos()}: </{tag}> closes another element")


@pytest.fixture(scope="module")
def page() -> Page:
    parsed = Page()
    parsed.feed(HTML)
    parsed.close()
    return parsed


def ids(page: Page) -> list[str]:
    return [attributes["id"] for _, attributes in page.elements if "id" in attributes]


def test_every_element_is_closed_and_every_id_is_there_once(page):
    assert page.wrong == []
    assert page.open == []
    assert len(ids(page)) == len(set(ids(page)))


def test_elements_refer_to_elements_that_are_there(page):
    names = ("for", "aria-controls", "aria-labelledby", "aria-describedby")
    wanted = {a[name] for _, a in page.elements for name in names if name in a}
    wanted |= {a["href"][1:] for tag, a in page.elements if tag == "a"}
    assert wanted <= set(ids(page))


def test_every_control_has_a_label(page):
    labelled = {a.get("for") for tag, a in page.elements if tag == "label"}
    without = [
        attributes
        for place, (tag, attributes) in enumerate(page.elements)
        if tag in CONTROLS
        and place not in page.labelled_within
        and attributes.get("id") not in labelled
        and "aria-label" not in attributes
    ]
    assert without == []


def test_html_has_no_inline_style_script_or_handler(page):
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "style"
        assert tag != "script" or attributes.get("src", "").startswith("static/")
    assert re.findall(r"<script[^>]*>\s*[^<\s]", HTML) == []


@pytest.mark.parametrize("name", ["index.html", "app.css", *SCRIPTS])
def test_nothing_is_asked_of_another_host(name):
    text = {"index.html": HTML, "app.css": STYLE, **SCRIPTS}[name]
    assert ELSEWHERE.findall(text.replace(SVG, "")) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_reads_text_as_html_or_code(name):
    assert UNSAFE.findall(SCRIPTS[name]) == []
    assert LEFT_BEHIND.findall(SCRIPTS[name]) == []


@pytest.mark.parametrize(
    "unsafe",
    [
        "node.innerHTML = text",
        'node.insertAdjacentHTML("x", text)',
        'node.setAttribute("style", "x")',
        'element("p", { style: "x" })',
        "eval (text)",
        'setTimeout("code")',
        'link.href = "javascript:x"',
    ],
)
def test_what_is_unsafe_is_caught(unsafe):
    assert UNSAFE.search(unsafe)


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ('"https://example.com/x.js"', True),
        ('"//cdn.example.com"', True),
        ("background: url(x.png)", True),
        ("// a comment. And another", False),
        ('new URL("../v1/files")', False),
    ],
)
def test_what_is_elsewhere_is_caught(text, caught):
    assert bool(ELSEWHERE.search(text)) == caught


def test_all_modules_are_reached_and_give_what_is_imported():
    reached, waiting = set(), ["main.js"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        assert len(re.findall(r"^import\b", SCRIPTS[name], re.M)) == len(
            IMPORT.findall(SCRIPTS[name])
        )
        for namespace, names, path in IMPORT.findall(SCRIPTS[name]):
            source = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            exported = set(EXPORT.findall(SCRIPTS[source]))
            wanted = {part.strip() for part in names.split(",") if part.strip()}
            if namespace:
                wanted = set(re.findall(rf"\b{namespace}\.(\w+)", IMPORT.sub("", SCRIPTS[name])))
            assert wanted <= exported, (name, source, wanted - exported)
            waiting.append(source)
    assert reached == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_element_that_a_script_looks_up_is_there(name, page):
    made = set(MADE.findall(SCRIPTS[name]))
    assert set(LOOKED_UP.findall(SCRIPTS[name])) <= set(ids(page)) | made


def test_every_imported_name_is_used():
    for name, source in SCRIPTS.items():
        body = IMPORT.sub("", source)
        for namespace, names, _ in IMPORT.findall(source):
            for used in [namespace] if namespace else [part.strip() for part in names.split(",")]:
                assert not used or re.search(rf"\b{used}\b", body), (name, used)


def test_every_variable_of_the_style_is_defined():
    assert set(re.findall(r"var\((--[\w-]+)\)", STYLE)) <= set(re.findall(r"(--[\w-]+):", STYLE))


def test_colours_of_day_all_have_one_for_night():
    day, night = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    shades = re.compile(r"(--[\w-]+): #")
    assert set(shades.findall(day)) == set(shades.findall(night))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_syntactically_right(name):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; a browser reads them in test_browser.py")
    command = [node, "--check", "--input-type=module"]
    done = subprocess.run(command, input=SCRIPTS[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
