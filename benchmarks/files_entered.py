"""Which files of this project a question runs through, and how large the project is.

    python benchmarks/files_entered.py [ask] [invoke] [size] [--json]

``ask`` counts the files entered by ``selfextend-rag ask FILE -q QUESTION``, ``invoke`` those
entered by the second `ChatSelfExtend.invoke` with a short prompt, in all threads; ``size`` counts
lines and files by package, and the uses of ``Any``. Each figure is followed by its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
CORE, INTEGRATIONS = ROOT / "selfextend_rag", ROOT / "integrations"
DOCUMENT = ROOT / "examples" / "documents" / "genesis.txt"
QUESTION = "What is the name of the fourth river?"
MOST_FILES = {"ask": 50, "invoke": 28}
LIMITS = {
    "core lines": 16_500,
    "core files": 110,
    "files of the largest package": 14,
    "integrations lines": 2_900,
    "Any": 250,
}


def files_entered(prepare: Callable[[], object], work: Callable[[], object]) -> list[str]:
    """Return the files of this project in which a function was called during the work.

    Only importing a file does not enter it. Every thread counts, also those that the preparation
    started: a thread is watched from its start or not at all.
    """
    names: set[str] = set()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_NEWLOCALS:  # of a function, not a module
            names.add(code.co_filename)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        prepare()
        names.clear()
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    paths = [Path(name).resolve() for name in names if os.path.isabs(name)]
    ours = [path for path in paths if CORE in path.parents or INTEGRATIONS in path.parents]
    if not ours:
        raise RuntimeError(f"nothing below {ROOT} was entered; another checkout is installed")
    return sorted(str(path.relative_to(ROOT)) for path in ours)


def entered_by_ask() -> list[str]:
    from selfextend_rag.cli import main

    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return files_entered(lambda: None, lambda: main(["ask", str(DOCUMENT), "-q", QUESTION]))


def entered_by_invoke() -> list[str]:
    from langchain_selfextend import ChatSelfExtend

    model = ChatSelfExtend(model="bundled", max_tokens=8)
    return files_entered(lambda: model.invoke("Hello."), lambda: model.invoke("Hello there."))


def lines_in(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def size() -> dict[str, object]:
    """Return lines and files, by package and in all; evals are not counted in the core."""
    core = [path for path in CORE.rglob("*.py") if "evals" not in path.relative_to(CORE).parts]
    integrations = list(INTEGRATIONS.rglob("*.py"))
    files = Counter(str(path.parent.relative_to(ROOT)) for path in core)
    lines: Counter[str] = Counter()
    for path in core:
        lines[str(path.parent.relative_to(ROOT))] += lines_in(path)
    sources = [*CORE.rglob("*.py"), *integrations]
    return {
        "packages": {name: {"files": files[name], "lines": lines[name]} for name in sorted(files)},
        "core lines": sum(lines.values()),
        "core files": len(core),
        "files of the largest package": max(files.values()),
        "integrations lines": sum(map(lines_in, integrations)),
        "Any": sum(len(re.findall(r"\bAny\b", path.read_text("utf-8"))) for path in sources),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help="ask, invoke, size; all by default")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    args = parser.parse_args()
    wanted = args.what or ["ask", "invoke", "size"]
    if unknown := set(wanted) - {"ask", "invoke", "size"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; take ask, invoke or size")
    found: dict[str, object] = {}
    if "size" in wanted:
        found["size"] = size()
    for name, entered in {"ask": entered_by_ask, "invoke": entered_by_invoke}.items():
        if name in wanted:
            found[name] = entered()
    if args.json:
        print(json.dumps(found, indent=1))
        return
    sizes = found.pop("size", {})
    for package, counts in sizes.pop("packages", {}).items():
        print(f"{counts['lines']:6} lines in {counts['files']:3} files  {package}")
    for name, count in sizes.items():
        print(f"{name}: {count} (at most {LIMITS[name]})")
    for name, entered in found.items():
        print(f"\n{name}: {len(entered)} files (at most {MOST_FILES[name]})", *entered, sep="\n  ")


if __name__ == "__main__":
    main()
