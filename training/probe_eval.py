"""Exact answers of a checkpoint to held-out lookups, plain and under SelfExtend.

    python -m training.probe_eval --run runs/bundled --lengths 512 2048 --samples 20

A sample counts when every answer token is the model's best guess, which is what greedy decoding
yields. ``--every SECONDS`` repeats it for each new checkpoint.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from selfextend_rag.evals.prose import Prose, encode, king_james
from selfextend_rag.evals.tasks import LookupTask, lookup_task, passkey_task
from training.dense import logits
from training.model import Decoder, load_checkpoint

log = logging.getLogger("probe")

WINDOW = 512


def answered(
    model: Decoder, tokenizer: Any, task: LookupTask, group_size: int, neighbor_window: int
) -> bool:
    """Return whether greedy decoding gives the answer and then stops."""
    answer = [*encode(tokenizer, f" {task.answer}"), tokenizer.eos_token_id]
    ids = torch.tensor([*task.prompt_ids, *answer[:-1]])
    scores = logits(model, ids, group_size=group_size, window=neighbor_window, last=len(answer))
    return scores.argmax(-1).tolist() == answer


def smallest_group(length: int, neighbor_window: int, share: float) -> int:
    """Return the least G at which ``length`` tokens use at most ``share`` of the window."""
    group = 1
    while neighbor_window + (length - neighbor_window) / group > share * WINDOW and length > WINDOW:
        group += 1
    return group


def probe(
    model: Decoder, tokenizer: Any, prose: Prose, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return and log the share of right answers for each task, length and group size."""
    results = []
    for length in args.lengths:
        groups = args.groups or [smallest_group(length, args.neighbor_window, args.share)]
        for group in dict.fromkeys([*([1] if args.plain else []), *groups]):
            for name, make in (("passkey", passkey_task), ("lookup", lookup_task)):
                right = [
                    answered(
                        model,
                        tokenizer,
                        make(
                            tokenizer,
                            prose,
                            length=length,
                            depth=(i + 0.5) / args.samples,
                            seed=args.seed + i,
                        ),
                        group,
                        args.neighbor_window,
                    )
                    for i in range(args.samples)
                ]
                share = sum(right) / len(right)
                results.append({"task": name, "length": length, "group": group, "right": share})
                log.info("  %-8s length %5d group %3d right %.3f", name, length, group, share)
    return results


def main() -> None:
    """Probe a run's checkpoint, once or again and again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 2048, 4096])
    parser.add_argument("--groups", type=int, nargs="*", default=[])
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--neighbor-window", type=int, default=128)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prose", type=Path, help="a text file; the King James Bible by default")
    parser.add_argument("--every", type=float, help="seconds between checkpoints to probe")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(args.run / "probe.txt"), logging.StreamHandler()],
    )
    tokenizer = AutoTokenizer.from_pretrained("selfextend_rag/bundled")
    text = args.prose.read_text("utf-8") if args.prose else king_james()
    prose = Prose.tokenize(text, tokenizer)
    while True:
        model, state = load_checkpoint(args.run / "checkpoint.pt")
        log.info("%s", json.dumps(state["progress"]))
        probe(model.eval(), tokenizer, prose, args)
        if args.every is None:
            return
        time.sleep(args.every)


if __name__ == "__main__":
    main()
