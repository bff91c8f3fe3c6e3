"""Questions about a reading: time to the first token, and many answers one by one or in a batch.

    python benchmarks/readings.py

The bundled model reads a real document of about 16 thousand tokens; each round reads it again, asks
a question, asks a second one, saves the reading, loads it in place of reading, and asks again. The
ratios are medians over the rounds, each within its own round. Then 16 questions are asked of
readings of several lengths, one by one and as a batch, alternately, with answers of 16 tokens each,
without evidence and with it. ``--json FILE`` writes what is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from selfextend_rag import Answer, LongContextLLM

DOCUMENT = Path(__file__).parent.parent / "examples" / "documents" / "genesis.txt"
QUESTIONS = ("What is the name of the fourth river?", "What is the name of the second river?")
SIXTEEN = (
    *(f"What is the name of the {n} river?" for n in ("first", "second", "third", "fourth")),
    *(f"Who is {name}?" for name in ("Adam", "Eve", "Cain", "Abel", "Enoch", "Noah")),
    *(f"What did God make on the {n} day?" for n in ("first", "second", "third", "fourth")),
    "Where is the land of Nod?",
    "How many rivers are there?",
)
BATCH_LENGTHS = (250, 4000, 16000)


def document(llm: LongContextLLM, tokens: int) -> str:
    """The document again and again, cut at a line end before so many tokens."""
    text = DOCUMENT.read_text("utf-8")
    whole = text * (1 + tokens // llm.count_tokens(text))
    cut = int(len(whole) * tokens / llm.count_tokens(whole))
    return whole[: whole.rindex("\n", 0, cut)]


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def measured(text: str, folder: Path) -> dict[str, float]:
    """One round, in seconds. Every model is a new one, so that nothing is remembered of it."""
    llm = LongContextLLM.bundled(max_group_size=128)
    llm.generate("Warm up.", max_new_tokens=2)
    read, reading = seconds(lambda: llm.read(text))
    first = reading.ask(QUESTIONS[0])
    second = reading.ask(QUESTIONS[1])
    path = folder / "reading"
    save, _ = seconds(lambda: reading.save(path))
    other = LongContextLLM.bundled(max_group_size=128)
    other.generate("Warm up.", max_new_tokens=2)
    load, loaded = seconds(lambda: other.load(path))
    again = loaded.ask(QUESTIONS[1])
    assert again.text == second.text
    return {
        "tokens": reading.plan.prompt_tokens,
        "read": read,
        "first_question": first.usage.prefill_seconds,
        "second_question": second.usage.prefill_seconds,
        "save": save,
        "load": load,
        "question_after_load": again.usage.prefill_seconds,
        "file_mib": path.stat().st_size / 2**20,
    }


def batch(llm: LongContextLLM, tokens: int, rounds: int, *, evidence: bool) -> dict[str, Any]:
    """Sixteen answers one by one and in a batch; the ratio is the median of alternate pairs."""
    reading = llm.read(document(llm, tokens))
    options: dict[str, Any] = {"max_new_tokens": 16, "stop": (), "stop_token_ids": ()}
    reading.ask_batch(
        SIXTEEN[:2], evidence=evidence, **options
    )  # grouped keys are made, the model is measured
    pairs, same, spans = [], 0, 0
    for _ in range(rounds):
        one_by_one, alone = seconds(
            lambda: [reading.ask(question, evidence=evidence, **options) for question in SIXTEEN]
        )
        together, answers = seconds(
            lambda: reading.ask_batch(SIXTEEN, evidence=evidence, **options)
        )
        pairs.append((one_by_one, together))
        same += sum(a.text == b.text for a, b in zip(alone, answers, strict=True))
        spans += sum(passages(a) == passages(b) for a, b in zip(alone, answers, strict=True))
    return {
        "tokens": reading.plan.prompt_tokens,
        "group_size": reading.plan.group_size,
        "evidence": evidence,
        "one_by_one": statistics.median(pair[0] for pair in pairs),
        "together": statistics.median(pair[1] for pair in pairs),
        "times_faster": statistics.median(pair[0] / pair[1] for pair in pairs),
        "equal_answers": f"{same} of {len(SIXTEEN) * rounds}",
        "equal_spans": f"{spans} of {len(SIXTEEN) * rounds}",
    }


def passages(answer: Answer) -> list[tuple[str, int, int]]:
    return [(one.document_id, one.start, one.end) for one in answer.evidence]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = document(LongContextLLM.bundled(), args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measured(text, Path(folder)) for _ in range(args.rounds)]
    report = {
        "what": "seconds to the first token of a question about a document",
        "baseline": "reading the document again, then the question",
        "median": {name: statistics.median(row[name] for row in rounds) for name in rounds[0]},
        "times_faster": {
            "second_question": statistics.median(
                (row["read"] + row["first_question"]) / row["second_question"] for row in rounds
            ),
            "loaded_from_disk": statistics.median(
                (row["read"] + row["first_question"]) / (row["load"] + row["question_after_load"])
                for row in rounds
            ),
        },
        "sixteen_answers": [
            batch(
                LongContextLLM.bundled(max_group_size=128), tokens, args.rounds, evidence=evidence
            )
            for tokens in BATCH_LENGTHS
            for evidence in (False, True)
        ],
        "rounds": args.rounds,
        "threads": args.threads,
        "machine": f"{platform.processor() or platform.machine()} {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
