"""What a corpus run costs over a plain loop, and whether a killed replica loses an answer.

python benchmarks/corpus.py [--documents 200] [--ray]
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import psutil

from selfextend_rag import Document
from selfextend_rag.corpus import CorpusRow, ModelSpec, run_corpus

QUESTION = "What is the pass key?"
NEW_TOKENS = 12


def documents(number: int) -> list[Document]:
    """Return short texts, each with a pass key of its own."""
    filler = "The grass is green and the sky is blue. " * 4
    return [
        Document.from_text(f"{filler}The pass key is {10000 + 37 * n}. {filler}", title=f"{n}")
        for n in range(number)
    ]


def plain(given: list[Document]) -> list[str]:
    """Return the answers of a plain loop."""
    llm = ModelSpec().open()
    answers = []
    for document in given:
        reading = llm.read(document, question=QUESTION, max_new_tokens=NEW_TOKENS)
        answers.append(reading.ask(QUESTION, evidence=False, max_new_tokens=NEW_TOKENS).text)
    return answers


def in_process(given: list[Document], folder: Path) -> list[str]:
    """Return the answers of a corpus run in this process."""
    out = folder / f"{time.time_ns()}.jsonl"
    result = run_corpus(given, QUESTION, ModelSpec(), out, max_new_tokens=NEW_TOKENS)
    return [row.text for row in result.rows]


def with_a_kill(given: list[Document], folder: Path) -> tuple[list[str], int]:
    """Return the answers of two replicas, one killed half way, and the rows of the file."""
    killed: list[int] = []

    def kill(row: CorpusRow, done: int, total: int) -> None:
        if done == total // 2:
            replicas = [x for x in psutil.Process().children(recursive=True) if is_replica(x)]
            os.kill(replicas[0].pid, signal.SIGKILL)
            killed.append(replicas[0].pid)

    out = folder / "replicas.jsonl"
    result = run_corpus(
        given, QUESTION, ModelSpec(), out, replicas=2, report=kill, max_new_tokens=NEW_TOKENS
    )
    if len(killed) != 1:
        raise RuntimeError("no replica was killed")
    return [row.text for row in result.rows], len(out.read_text("utf-8").splitlines())


def is_replica(process: psutil.Process) -> bool:
    """Return whether a process is one of Ray's with a model."""
    return any("_Replica" in part for part in process.cmdline())


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--ray", action="store_true", help="two replicas too, one killed half way")
    chosen = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    given = documents(chosen.documents)
    write(f"{len(given)} documents, bundled model, {platform.machine()}, {versions}")
    plain(given[:3])  # loads and warms up
    spent: dict[str, float] = {"plain loop": 0.0, "corpus, in process": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        answers: list[list[str]] = []
        for part in range(0, len(given), 20):  # in turns, so that both have the same company
            some = given[part : part + 20]
            for name in spent:
                begun = time.process_time()
                found = plain(some) if name == "plain loop" else in_process(some, Path(folder))
                spent[name] += time.process_time() - begun
                answers.append(found)
        same = all(answers[n] == answers[n + 1] for n in range(0, len(answers), 2))
        for name, seconds in spent.items():
            write(f"{name}: {seconds:.1f} s of CPU")
        loop, corpus = spent.values()
        write(f"overhead {corpus / loop - 1:+.1%}, answers {'equal' if same else 'DIFFERENT'}")
        if chosen.ray:
            begun = time.perf_counter()
            found, lines = with_a_kill(given, Path(folder))
            wanted = [text for n in range(0, len(answers), 2) for text in answers[n]]
            equal = "equal" if found == wanted else "DIFFERENT"
            write(
                f"2 replicas, one killed half way: {len(found)} answers, {lines} rows, {equal}, "
                f"{time.perf_counter() - begun:.0f} s"
            )


def write(text: str) -> None:
    """Write a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
