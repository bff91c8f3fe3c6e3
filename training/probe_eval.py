"""Exact answers of a checkpoint to held-out questions, plain and under SelfExtend.

    python -m training.probe_eval --run runs/bundled --lengths 512 2048 --samples 20

A sample counts when every answer token is the model's best guess, which is what greedy decoding
yields. ``--bundled`` probes the model that ships instead of a checkpoint.
"""

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from selfextend_rag.evals.prose import Prose, king_james
from training.dense import logits
from training.export import opened
from training.heldout import KINDS, Question
from training.model import Decoder

log = logging.getLogger("probe")

WINDOW = 512


def answered(model: Decoder, question: Question, group_size: int, neighbor_window: int) -> bool:
    """Return whether greedy decoding gives the answer and then stops."""
    ids = torch.tensor([*question.prompt, *question.answer[:-1]])
    last = len(question.answer)
    scores = logits(model, ids, group_size=group_size, window=neighbor_window, last=last)
    return tuple(scores.argmax(-1).tolist()) == question.answer


def smallest_group(length: int, neighbor_window: int, share: float) -> int:
    """Return the least G at which ``length`` tokens use at most ``share`` of the window."""
    group = 1
    while neighbor_window + (length - neighbor_window) / group > share * WINDOW and length > WINDOW:
        group += 1
    return group


def probe(
    model: Decoder, tokenizer: Any, prose: Prose, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return and log the share of right answers for each kind, length and group size."""
    results = []
    for length in args.lengths:
        groups = args.groups or [smallest_group(length, args.neighbor_window, args.share)]
        for group in dict.fromkeys([*([1] if args.plain else []), *groups]):
            for kind in args.kinds:
                right: Counter[str] = Counter()
                asked: Counter[str] = Counter()
                for seed in range(args.seed, args.seed + args.samples):
                    question = KINDS[kind](tokenizer, prose, length - 12, seed)
                    asked[question.form] += 1
                    right[question.form] += answered(model, question, group, args.neighbor_window)
                share = right.total() / asked.total()
                results.append({"task": kind, "length": length, "group": group, "right": share})
                log.info("  %-12s length %5d group %3d right %.3f", kind, length, group, share)
                if args.forms:
                    for form, count in asked.items():
                        log.info("      %3d of %3d  %s", right[form], count, form)
    return results


def main() -> None:
    """Probe a run's checkpoint, or the model that ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--groups", type=int, nargs="*", default=[])
    parser.add_argument("--share", type=float, default=0.66)
    parser.add_argument("--neighbor-window", type=int, default=128)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--forms", action="store_true", help="right answers by wording, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prose", type=Path, help="a text file; the King James Bible by default")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(args.run / "probe.txt"), logging.StreamHandler()],
    )
    model, folder = opened(args)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = args.prose.read_text("utf-8") if args.prose else king_james()
    prose = Prose.tokenize(text, tokenizer)
    probe(model, tokenizer, prose, args)


if __name__ == "__main__":
    main()
