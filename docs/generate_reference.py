"""Writes docs/reference.md: what each public name is, by the first line of its docstring.

python docs/generate_reference.py
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).with_name("reference.md")
PACKAGES = ("selfextend_rag", "langchain_selfextend", "llama_index.llms.selfextend")
HEAD = """# API reference

All public names, and what each is; arguments, results and errors are in docstrings (`help(name)`).
This page is written by `python docs/generate_reference.py`.
"""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(section(package) for package in PACKAGES)


def section(package: str) -> str:
    """Return the part of a package: its names in order, classes with their methods."""
    module = importlib.import_module(package)
    entries = [entry(name, getattr(module, name)) for name in sorted(module.__all__)]
    return f"\n## `{package}`\n\n" + "".join(entries)


def entry(name: str, found: object) -> str:
    """Return what a name is, in one line, and in one line each its methods."""
    kinds = {"class": inspect.isclass, "module": inspect.ismodule, "function": callable}
    kind = next(kind for kind, is_one in kinds.items() if is_one(found))
    lines = [f"* **`{name}`** ({kind}): {first_line(found)}"]
    if inspect.isclass(found):
        lines += [f"  * `{each}`: {said}" for each, said in methods(found)]
    return "\n".join(lines) + "\n"


def methods(found: type) -> Iterator[tuple[str, str]]:
    """Yield the public methods and properties that a class documents itself, and what they do."""
    for name, value in vars(found).items():
        function = getattr(value, "__func__", value)
        documented = inspect.isfunction(function) or isinstance(value, property)
        if documented and not name.startswith("_") and first_line(function):
            yield name, first_line(function)


def first_line(found: object) -> str:
    """Return the first line of a docstring; empty if there is none."""
    return (inspect.getdoc(found) or "").strip().split("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
