"""What a user waits for before anything is read: imports, the command's help, a plan of one page.

    python benchmarks/start.py [--model FOLDER] [--rounds 5] [--json FILE]

Each command is a process of its own, in turn; times are CPU seconds, of files that were read
before and whose bytecode is kept, as from a user's second run on. "configuration and tokenizer"
is what transformers alone takes to load the two, without which there is no plan.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from selfextend_rag import bundled

ROOT = Path(__file__).resolve().parents[1]
PAGE = 3000  # characters
LOADED = (
    "import sys, torch, transformers as t;"
    "t.AutoConfig.from_pretrained(sys.argv[1]); t.AutoTokenizer.from_pretrained(sys.argv[1])"
)


def seconds(arguments: list[str], bytecode: Path) -> float:
    """Return the CPU seconds of a process of this Python, which must succeed.

    Its bytecode is read from and kept in a folder of its own, whatever the environment says.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    null = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]
    command = [sys.executable, *arguments]
    process = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
    _, status, used = os.wait4(process, 0)
    os.close(null)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return used.ru_utime + used.ru_stime


def measured(model: str, page: str, bytecode: Path, rounds: int) -> list[dict[str, Any]]:
    ways = {
        "import torch, transformers": ["-c", "import torch, transformers"],
        "configuration and tokenizer, by transformers": ["-c", LOADED, model],
        "import selfextend_rag": ["-c", "import selfextend_rag"],
        "selfextend-rag --help": ["-m", "selfextend_rag", "--help"],
        "selfextend-rag plan": ["-m", "selfextend_rag", "plan", page, "--model", model],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for arguments in ways.values():
        seconds(arguments, bytecode)
    for _ in range(rounds):
        for name, arguments in ways.items():
            times[name].append(seconds(arguments, bytecode))
    return [{"what": name, "seconds": statistics.median(x)} for name, x in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(Path(bundled.__file__).parent))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.txt"
        text = (ROOT / "examples/documents/genesis.txt").read_text("utf-8")
        page.write_text(text[:PAGE], "utf-8")
        rows = measured(args.model, str(page), Path(folder) / "bytecode", args.rounds)
    report = {
        "what": "CPU seconds until a command is done, medians", "rounds": args.rounds,
        "model": Path(args.model).name, "page_characters": PAGE,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
