"""Run one benchmark of two checkouts in turn, and print how each of its figures has changed.

    python benchmarks/compare.py [--rounds 5] [--json FILE] OTHER_CHECKOUT cpu.py decode --pairs 3

Each round runs the other checkout and then this one, in processes of their own; a figure's ratio is
the median over the rounds of this one's by the other's. Whatever the benchmark takes may follow its
name; it must write its figures by ``--json FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def figures(report: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield each positive number of a report with its place; a list's items go by their numbers."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield from figures(value, f"{name}.{key}" if name else str(key))
    elif isinstance(report, list):
        for index, value in enumerate(report):
            yield from figures(value, f"{name}[{index}]")
    elif isinstance(report, int | float) and not isinstance(report, bool) and report > 0:
        yield name, report


def measured(checkout: Path, command: list[str], folder: str) -> dict[str, float]:
    """Return the figures of one run of a checkout's benchmark."""
    out = Path(folder) / "figures.json"
    paths = os.pathsep.join(str(path) for path in (checkout, checkout / "integrations"))
    script = checkout / "benchmarks" / command[0]
    run = [sys.executable, str(script), *command[1:], "--json", str(out)]
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run(run, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
    return dict(figures(json.loads(out.read_text())))


def ratios(before: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, float]:
    """Return the median ratio, after by before, of the figures that every run has."""
    names = set.intersection(*(set(run) for run in (*before, *after)))
    return {
        name: statistics.median(b[name] / a[name] for a, b in zip(before, after, strict=True))
        for name in before[0]
        if name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the checkout to compare this one with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a benchmark and its arguments")
    args = parser.parse_args()
    before, after = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            before.append(measured(args.other.resolve(), args.command, folder))
            after.append(measured(ROOT, args.command, folder))
    found = ratios(before, after)
    for name, ratio in found.items():
        last = f"{statistics.median(run[name] for run in after):.4g}"
        print(f"{ratio:6.3f}  {name} = {last}")
    if args.json:
        args.json.write_text(
            json.dumps({"command": args.command, "ratios": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
