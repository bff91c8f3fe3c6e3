"""All that the documents say of the bundled model, measured and written into them.

    python benchmarks/bundled_model.py
    python benchmarks/bundled_model.py --steps passkey lookup --samples 5 --long-samples 2
    python benchmarks/bundled_model.py --publish

Each step runs other commands of this repository; what one of them has measured, with the same
weights and arguments, is not measured again, so that a run goes on where it was broken off. All is
kept in ``runs/bundled_model``, in a folder of the weights. Then the tables are printed.
``--publish`` measures nothing, and writes the tables into the documents, between ``<!-- measured:
NAME -->`` and ``<!-- end -->``, results and pictures into ``docs/results`` and
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "selfextend_rag" / "bundled"
FORMER = "49bd48f"
WINDOW = 512
LENGTHS = tuple(WINDOW * times for times in (1, 2, 4, 8, 16))
PROSE_LENGTHS = LENGTHS[:4]
DEPTHS = 10
EVALS = ("-m", "selfextend_rag.evals")
PROBE = ("-m", "training.probe_eval", "--bundled", "--plain")
KINDS = {
    "alike": "among four facts alike",
    "new wordings": "the same, in wordings of its own",
    "one of words": "values of words and names",
    "trained form": "`What is the height of Corwick?`",
    "free": "`How high is Corwick?`, the same texts",
    "object": "JSON with the found value",
    "unstated": "the text does not say it",
}
Json = Any


class Measurement:
    """The steps with their commands, and what they have found.

    Args:
        samples: texts a depth (of ten) and length of up to four windows.
        long_samples: the same beyond.
    """

    def __init__(self, samples: int, long_samples: int) -> None:
        self.samples = samples
        self.long_samples = long_samples
        weights = (BUNDLED / "model.safetensors").read_bytes()
        self.out = ROOT / "runs" / "bundled_model" / hashlib.sha256(weights).hexdigest()[:12]

    def texts(self, length: int) -> int:
        """Return how many texts a depth are read."""
        return self.samples if length <= 4 * WINDOW else self.long_samples

    def commands(self, step: str) -> dict[str, list[str]]:
        """Return the commands of a step by their names."""
        return getattr(self, f"_{step}")()  # type: ignore[no-any-return]  # a dictionary of them

    def folder(self, step: str, name: str) -> Path:
        """Return where a command writes."""
        return self.out / step / name

    def _grid(self, step: str, name: str, *arguments: object) -> list[str]:
        more = map(str, arguments)
        return [*EVALS, *more, "--out", str(self.folder(step, name)), "--no-plot"]

    def _lookups(self, task: str) -> dict[str, list[str]]:
        few = max(1, self.samples // 4)
        parts = {
            "plain-window": ("plain", LENGTHS[:1], self.samples),
            "plain-beyond": ("plain", LENGTHS[1:4], few),
            "plain-longest": ("plain", LENGTHS[4:], max(1, self.long_samples // 4)),
            "selfextend-short": ("selfextend", LENGTHS[:3], self.samples),
            "selfextend-long": ("selfextend", LENGTHS[3:], self.long_samples),
        }
        return {
            name: self._grid(task, name, task, "--only", label, "--samples", n, "--lengths", *these)
            for name, (label, these, n) in parts.items()
        }

    def _passkey(self) -> dict[str, list[str]]:
        return self._lookups("passkey")

    def _lookup(self) -> dict[str, list[str]]:
        return self._lookups("lookup")

    def _probe(self) -> dict[str, list[str]]:
        def asked(length: int, count: int, kinds: list[str]) -> list[str]:
            out = self.folder("probe", str(length))
            given = ["--lengths", str(length), "--samples", str(count), "--kinds", *kinds]
            return [*PROBE[:3], *given, "--run", str(out), "--json", str(out / "results.json")]

        far = ["one of words", "free", "trained form", "object", "unstated"]
        return {
            str(WINDOW): asked(WINDOW, DEPTHS * self.samples, list(KINDS)),
            str(8 * WINDOW): asked(8 * WINDOW, DEPTHS * self.long_samples, far),
        }

    def _perplexity(self) -> dict[str, list[str]]:
        out = self.folder("perplexity", "all")
        given = ("perplexity", "--samples", "8", "--lengths", *map(str, PROSE_LENGTHS))
        return {"all": [*EVALS, *given, "--out", str(out)]}

    def _short(self) -> dict[str, list[str]]:
        given = ("lookup", "--samples", self.samples, "--lengths", 500, "--group-size")
        return {f"G{size}": self._grid("short", f"G{size}", *given, size) for size in (2, 8)}

    def _kv_bits(self) -> dict[str, list[str]]:
        found = {}
        for bits in (8, 4):
            only = ("--only", "selfextend", "--kv-bits", bits, "--lengths")
            for task, length in (("passkey", 4096), ("lookup", 2048)):
                given = (task, *only, length, "--samples", self.texts(length))
                found[f"{task}-{bits}"] = self._grid("kv_bits", f"{task}-{bits}", *given)
            given = ("perplexity", *only, *PROSE_LENGTHS, "--samples", 8)
            found[f"perplexity-{bits}"] = self._grid("kv_bits", f"perplexity-{bits}", *given)
        return found

    def _kv_cost(self) -> dict[str, list[str]]:
        out = self.folder("kv_cost", "all") / "results.json"
        return {"all": ["benchmarks/kv_bits.py", "--rounds", "3", "--json", str(out)]}

    def _evidence(self) -> dict[str, list[str]]:
        count, out = str(DEPTHS * self.long_samples), str(self.folder("evidence", "all"))
        given = ["--lookups", count, "--facts", count, "--pairs", "9", "--out", out]
        return {"all": ["benchmarks/evidence.py", *given]}

    def _positions(self) -> dict[str, list[str]]:
        out = str(self.folder("positions", "all"))
        return {"all": ["benchmarks/positions.py", "--out", out]}

    def _speed(self) -> dict[str, list[str]]:
        out = self.folder("speed", "all")
        given = ["--former", FORMER, "--rounds", "7", "--json", str(out / "results.json")]
        return {"all": ["benchmarks/reading_speed.py", *given]}

    def _methods(self) -> dict[str, list[str]]:
        out = self.folder("methods", "all") / "methods.jsonl"
        count = str(max(1, self.samples // 4))
        given = ["--samples", count, "--out", str(out)]
        return {"all": ["benchmarks/methods.py", *given]}

    def run(self, step: str) -> None:
        """Run the commands of a step that have not been run with the same arguments."""
        for name, command in self.commands(step).items():
            done = self.folder(step, name) / "done.json"
            if done.exists() and json.loads(done.read_text())["command"] == command:
                continue
            done.parent.mkdir(parents=True, exist_ok=True)
            print(f"{step} {name}: {' '.join(command)}", flush=True)
            started = time.monotonic()
            with (done.parent / "printed.txt").open("w") as printed:
                given = {"cwd": ROOT, "check": True, "stdout": printed}
                subprocess.run([sys.executable, *command], **given)  # type: ignore[call-overload]  # its options by name
            seconds = round(time.monotonic() - started, 1)
            done.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n")
            print(f"{step} {name}: {seconds} s", flush=True)

    def found(self, step: str, name: str, file: str = "results.json") -> Json:
        """Return what a command found."""
        return json.loads((self.folder(step, name) / file).read_text("utf-8"))

    def grid(self, task: str) -> Json:
        """Return the report of all lengths of pass keys or lookups, as one."""
        reports = {name: self.found(task, name) for name in self.commands(task)}
        merged: Json = {**next(iter(reports.values())), "results": {}}
        for name, report in reports.items():
            label = name.partition("-")[0]
            merged["results"].setdefault(label, []).extend(report["results"][label])
        merged["seconds"] = round(sum(report["seconds"] for report in reports.values()), 1)
        return merged

    def perplexities(self) -> dict[str, Json]:
        """Return the rows of perplexity by the row of the table that they are in."""
        plain_and_extended = self.found("perplexity", "all")["results"]
        names = {"plain": "plain attention", "selfextend": "SelfExtend"}
        return {names[label]: rows for label, rows in plain_and_extended.items()}


STEPS = (
    *("passkey", "lookup", "probe", "perplexity", "speed", "evidence"),
    *("short", "kv_bits", "kv_cost", "positions", "methods"),
)


def row(*values: object) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(map(str, values)) + " |"


def head(*values: object) -> list[str]:
    """Return the first two lines of a table."""
    return [row(*values), "|" + " --- |" * len(values)]


def counted(cells: list[Json]) -> str:
    """Return how many of how many answers are right."""
    right, asked = (sum(cell[name] for cell in cells) for name in ("right", "samples"))
    return f"{right} of {asked}"


def lengths_table(found: Measurement) -> list[str]:
    """Return pass keys and lookups, plain and extended, by length."""
    lines = head("exact answers; prompt, tokens", *LENGTHS)
    for task, title in (("passkey", "pass key"), ("lookup", "one of four facts alike")):
        for label, cells in found.grid(task)["results"].items():
            name = "SelfExtend" if label == "selfextend" else "plain attention"
            by_length = [[c for c in cells if c["length"] == n] for n in LENGTHS]
            lines.append(row(f"{title}, {name}", *map(counted, by_length)))
    return lines


def kinds_table(found: Measurement) -> list[str]:
    """Return right and refused answers by kind of question, in the window and at 8 windows."""
    results = [found.found("probe", name) for name in found.commands("probe")]
    lines = head(
        "asked for",
        *(f"{length}: {what}" for length in (WINDOW, 8 * WINDOW) for what in ("right", "refused")),
    )
    for kind, title in KINDS.items():
        values: list[str] = []
        for rows in results:
            (cell,) = [r for r in rows if r["kind"] == kind] or [None]
            values.append(f"{cell['right']} of {cell['asked']}" if cell else "")
            values.append("" if cell is None or kind == "unstated" else str(cell["refused"]))
        lines.append(row(title, *values))
    return lines


def perplexity_table(found: Measurement) -> list[str]:
    """Return perplexity by length, plain and extended."""
    lines = head("prose, tokens", *PROSE_LENGTHS)
    for name, rows in found.perplexities().items():
        values = (f"{each['perplexity']:.1f}" for each in rows)
        lines.append(row(f"perplexity, {name}", *values))
    return lines


def kv_bits_table(found: Measurement) -> list[str]:
    """Return what fewer bits cost in answers and perplexity."""
    tasks = (("passkey", 4096), ("lookup", 2048))
    lines = head(
        "keys and values", "pass keys", "facts", *(f"perplexity at {n}" for n in PROSE_LENGTHS)
    )
    for bits in (None, 8, 4):
        values = []
        for task, length in tasks:
            cells = found.found("kv_bits", f"{task}-{bits}") if bits else found.grid(task)
            chosen = [c for c in cells["results"]["selfextend"] if c["length"] == length]
            values.append(counted(chosen))
        rows = (
            found.found("kv_bits", f"perplexity-{bits}")["results"]["selfextend"]
            if bits
            else found.perplexities()["SelfExtend"]
        )
        values += [f"{each['perplexity']:.1f}" for each in rows]
        lines.append(row(f"{bits} bits" if bits else "full precision", *values))
    return lines


def kv_cost_table(found: Measurement) -> list[str]:
    """Return memory and time with fewer bits, over full precision."""
    lines = head("tokens read", "bits", "memory", "time to read", "time for a token of an answer")
    for each in found.found("kv_cost", "all")["results"]:
        if each["kv_bits"]:
            names = ("reading_mib", "read_seconds", "token_milliseconds")
            memory, read, token = (each[f"{name}_over_full"] for name in names)
            first = f"{each['tokens']:,.0f}" if each["kv_bits"] == 8 else ""
            lines.append(
                row(first, each["kv_bits"], f"{memory:.2f}", f"{read:.2f}", f"{token:.1f}")
            )
    return lines


def evidence_table(found: Measurement) -> list[str]:
    """Return in how many answers the first passage holds the fact."""
    lines = head(
        "asked for", "answered rightly", "first passage holds it",
        "answered wrongly", "first passage holds it", "first passage holds what was answered",
    )  # fmt: skip
    report = found.found("evidence", "all", "evidence.json")
    for name, title in (("lookups", "pass keys"), ("facts", "one of four facts alike")):
        right, wrong = report[name]["right"], report[name]["wrong"]
        holds = "fact_in_first_passage"
        given = wrong.get("given_answer_in_first_passage", "")
        values = (right["lookups"], right.get(holds, ""), wrong["lookups"], wrong.get(holds, ""))
        lines.append(row(title, *values, given))
    return lines


def short_table(found: Measurement) -> list[str]:
    """Return lookups inside the window by plain attention and with an extension forced on."""
    plain, two = found.found("short", "G2")["results"].values()
    eight = found.found("short", "G8")["results"]["selfextend"]
    lines = head("500 tokens", "plain attention", "*G* = 2", "*G* = 8")
    return [*lines, row("one of four facts alike", *map(counted, (plain, two, eight)))]


def speed_table(found: Measurement) -> list[str]:
    """Return reading speed, over that of the weights before."""
    lines = head("characters read", "tokens", "tokens a second", "over the former: tokens", "text")
    for each in found.found("speed", "all")["results"]:
        values = (f"{each['tokens_ratio']:.2f}", f"{each['text_ratio']:.2f}")
        figures = (f"{each[name]:,.0f}" for name in ("characters", "tokens", "tokens_a_second"))
        lines.append(row(*figures, *values))
    return lines


TABLES: dict[str, tuple[Callable[[Measurement], list[str]], tuple[str, ...]]] = {
    "lengths": (lengths_table, ("passkey", "lookup")),
    "kinds": (kinds_table, ("probe",)),
    "perplexity": (perplexity_table, ("perplexity",)),
    "short": (short_table, ("short",)),
    "kv_bits": (kv_bits_table, ("passkey", "lookup", "perplexity", "kv_bits")),
    "kv_cost": (kv_cost_table, ("kv_cost",)),
    "evidence": (evidence_table, ("evidence",)),
    "speed": (speed_table, ("speed",)),
}
"""Each table, and the steps that it is made of."""
PAGES = ("docs/measurements.md", "docs/evidence.md", "selfextend_rag/bundled/README.md")


def tables(found: Measurement) -> dict[str, str]:
    """Return each table in Markdown of which all steps have been measured."""
    return {
        name: "\n".join(make(found))
        for name, (make, steps) in TABLES.items()
        if all(
            (found.folder(s, n) / "done.json").exists() for s in steps for n in found.commands(s)
        )
    }


def renewed(text: str, made: dict[str, str]) -> str:
    """Return a document with the tables that are there between their marks."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        old, new = match[0], f"<!-- measured: {name} -->\n{made.get(name)}\n<!-- end -->"
        return new if name in made else old

    return re.sub(
        r"<!-- measured: (?P<name>\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL
    )


def publish(found: Measurement) -> None:
    """Write tables, results and pictures of what has been measured to where people read them."""
    made = tables(found)
    for page in PAGES:
        path = ROOT / page
        path.write_text(renewed(path.read_text("utf-8"), made), "utf-8")
    results = ROOT / "docs" / "results"
    if "lengths" in made:
        for task in ("passkey", "lookup"):
            report = found.grid(task)
            (results / f"{task}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            draw(task, report["results"], results / f"{task}.png")
    if "perplexity" in made:
        folder = found.folder("perplexity", "all")
        shutil.copyfile(folder / "results.json", results / "perplexity.json")
        shutil.copyfile(folder / "perplexity.png", results / "perplexity.png")
    if "kv_bits" in made:
        reports = {name: found.found("kv_bits", name) for name in found.commands("kv_bits")}
        (results / "kv_bits.json").write_text(json.dumps(reports, indent=1) + "\n", "utf-8")
    for step, name in (
        *(("kv_cost", "results.json"), ("speed", "results.json")),
        *(("evidence", "evidence.json"), ("positions", "positions.json")),
    ):
        file = found.folder(step, "all") / name
        if (file.parent / "done.json").exists():
            published = {"kv_cost": "kv_bits.json", "speed": "reading_speed.json"}.get(step, name)
            shutil.copyfile(file, ROOT / "benchmarks" / "results" / published)
    publish_methods(found.folder("methods", "all"))


def publish_methods(folder: Path) -> None:
    """Write the table of methods into its page, as ``benchmarks/methods.py`` prints it."""
    if not (folder / "done.json").exists():
        return
    shutil.copyfile(folder / "methods.jsonl", ROOT / "docs" / "results" / "methods.jsonl")
    printed = (folder / "printed.txt").read_text("utf-8")
    page = ROOT / "docs" / "methods.md"
    text = page.read_text("utf-8")
    before, _, rest = text.partition("<!-- results -->")
    after = rest.partition("<!-- end -->")[2]
    table = printed[printed.index("Model `") :].strip()
    page.write_text(f"{before}<!-- results -->\n{table}\n\n<!-- end -->{after}", "utf-8")


def draw(task: str, results: Json, path: Path) -> None:
    """Draw the heat maps of pass keys or lookups."""
    from selfextend_rag.evals.plots import heat_maps
    from selfextend_rag.evals.runner import Cell

    cells = {
        label: [Cell(**{**cell, "settings": None}) for cell in rows]
        for label, rows in results.items()
    }
    heat_maps(cells, f"{task}, bundled, window of {WINDOW} tokens", path)


def main() -> None:
    """Measure what is missing and print the tables, or publish them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--long-samples", type=int, default=20)
    parser.add_argument("--publish", action="store_true")
    args = parser.parse_args()
    found = Measurement(args.samples, args.long_samples)
    if args.publish:
        publish(found)
    else:
        for step in args.steps:
            if step not in args.skip:
                found.run(step)
    for name, table in tables(found).items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
