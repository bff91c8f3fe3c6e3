"""Runs a notebook's cells from the top and writes what they show into it.

python examples/notebook.py examples/whole_documents.ipynb

It takes the place of a Jupyter kernel, which is much to install for one page.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path

KINDS = {"text/html": "_repr_html_", "text/markdown": "_repr_markdown_"}


def run(path: Path) -> dict:
    """Return a notebook with the outputs of its code cells, all of them run in order.

    Raises:
        Exception: what a cell raised.
    """
    notebook = json.loads(path.read_text("utf-8"))
    names: dict[str, object] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        cell["execution_count"] = number
        cell["outputs"] = outputs("".join(cell["source"]), names, number)
    return notebook


def outputs(source: str, names: dict[str, object], number: int) -> list[dict]:
    """Return what a cell prints, on both streams, and what its last line is."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    value = None
    with (
        contextlib.redirect_stdout(streams["stdout"]),
        contextlib.redirect_stderr(streams["stderr"]),
    ):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if last is not None:
            value = eval(compile(last, "cell", "eval"), names)
    found: list[dict] = [
        {"name": name, "output_type": "stream", "text": shown(stream.getvalue())}
        for name, stream in streams.items()
        if stream.getvalue().strip()
    ]
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        for kind, method in KINDS.items():
            if hasattr(value, method):
                data[kind] = lines(getattr(value, method)())
        result = {"data": data, "execution_count": number, "metadata": {}}
        found.append({**result, "output_type": "execute_result"})
    return found


def shown(text: str) -> list[str]:
    """Return text as a terminal shows it: of a bar that was drawn again, its last state."""
    return lines("\n".join(line.rpartition("\r")[2] for line in text.split("\n")))


def lines(text: str) -> list[str]:
    """Return text as a list of lines, as notebooks keep it."""
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        made = json.dumps(run(Path(name)), indent=1, ensure_ascii=False)
        Path(name).write_text(made + "\n", "utf-8")
