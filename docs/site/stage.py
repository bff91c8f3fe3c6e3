"""Writes the source of the documentation site into a folder: `make docs` runs it, then the builder.

python docs/site/stage.py build/site

Pages are written for the repository, where their links lead to each other and to files. On the
site README is the start page, the files that pages link to are copied along, and the API reference
has a page for each package. A link that leads nowhere is an error here, and fails the build.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = "README.md"
PACKAGES = ("selfextend_rag", "langchain_selfextend", "llama_index.llms.selfextend")
LINK = re.compile(
    r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)"
)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def stage(folder: Path) -> None:
    """Write the pages of the site and all that they link to.

    Raises:
        FileNotFoundError: a page links to a file that is not there; the message names both.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for source in needed():
        target = folder / site_of(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(page(source), "utf-8")
        else:
            shutil.copyfile(ROOT / source, target)
    for package in PACKAGES:
        target = folder / "api" / f"{package}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(reference(package), "utf-8")


def needed() -> list[str]:
    """Return README, the pages of docs/, and each file that one of these or those leads to."""
    found: dict[str, None] = {}
    waiting = [START, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))]
    while waiting:
        source = waiting.pop()
        if source not in found:
            found[source] = None
            if source.endswith(".md"):
                waiting += [target for target in targets(source) if not (ROOT / target).is_dir()]
    return sorted(found)


def targets(source: str) -> Iterator[str]:
    """Yield what a page links to within the repository, as paths from the root.

    Raises:
        FileNotFoundError: a target is not there.
    """
    for match in LINK.finditer(CODE.sub("", (ROOT / source).read_text("utf-8"))):
        target = target_of(source, match["path"])
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{source} links to {match['path']}, which is not there")
        yield target


def target_of(source: str, link: str) -> str:
    """Return the path, from the root, that a link on a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def site_of(source: str) -> str:
    """Return where a file of the repository is on the site."""
    if source == START:
        return "index.md"
    return source.removeprefix("docs/") if source.startswith("docs/") else f"repository/{source}"


def page(source: str) -> str:
    """Return a page as it is on the site: without front matter, and with links of the site."""
    here = posixpath.dirname(site_of(source)) or "."

    def rewritten(match: re.Match[str]) -> str:
        target = target_of(source, match["path"])
        if (ROOT / target).is_dir():  # folders have no page
            return match["text"].strip("[]")
        to = posixpath.relpath(site_of(target), here)
        return f"{match['text']}({to}{match['anchor'] or ''})"

    text = FRONT_MATTER.sub("", (ROOT / source).read_text("utf-8"))
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(rewritten, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(rewritten, text[end:])])


def reference(package: str) -> str:
    """Return the page with the docstrings of all public names of a package."""
    module = importlib.import_module(package)
    names = [name for name in sorted(module.__all__) if not inspect.ismodule(getattr(module, name))]
    said = (inspect.getdoc(module) or "").split("\n\n")[0]
    return f"# `{package}`\n\n{said}\n" + "".join(f"\n::: {package}.{name}\n" for name in names)


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
