"""Exact answers of a checkpoint to held-out questions, plain and under SelfExtend.

    python -m training.probe_eval --run runs/bundled --lengths 512 2048 --samples 20

Each answer is decoded greedily by this package, with what its planner chooses for the length: plain
attention inside the window, SelfExtend beyond. ``--plain`` asks without extension too, and
``--bundled`` the model that ships instead of a checkpoint. An answer counts as refused when it is
that the text does not say.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from selfextend_rag.evals.access import HuggingFaceModel
from selfextend_rag.evals.prose import Prose, king_james
from selfextend_rag.maps import map_to_dict
from selfextend_rag.planning import ContextBudgetPlanner
from training.export import opened
from training.heldout import KINDS, Question
from training.model import Decoder, to_llama

log = logging.getLogger("probe")

ANSWER_TOKENS = 12


def answered(model: HuggingFaceModel, question: Question, end: int) -> tuple[bool, bool]:
    """Return whether greedy decoding gives the answer and its end, and whether it refuses."""
    most = max(len(question.answer), len(question.refusal))
    given = (*model.generate(question.prompt, most), end)
    right, refusal = (given[: len(ids)] == ids for ids in (question.answer, question.refusal))
    return right, refusal


def attentions(
    model: PreTrainedModel, length: int, plain: bool
) -> Iterator[tuple[str, HuggingFaceModel]]:
    """Yield the model as the planner extends it for a length, and plain before if asked."""
    window = model.config.max_position_embeddings
    prompt = length - ANSWER_TOKENS
    settings = ContextBudgetPlanner(window).plan(prompt, ANSWER_TOKENS).settings
    if plain and settings is not None:
        yield "plain", HuggingFaceModel(model)
    yield ("plain" if settings is None else "selfextend"), HuggingFaceModel(model, settings)


def probe(
    model: PreTrainedModel, tokenizer: Any, prose: Prose, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return and log right and refused answers of each kind, length and attention."""
    results = []
    for length in args.lengths:
        for name, adapter in attentions(model, length, args.plain):
            for kind in args.kinds:
                right: Counter[str] = Counter()
                asked: Counter[str] = Counter()
                refused = 0
                for seed in range(args.seed, args.seed + args.samples):
                    question = KINDS[kind](tokenizer, prose, length - ANSWER_TOKENS, seed)
                    found, refusal = answered(adapter, question, tokenizer.eos_token_id)
                    asked[question.form] += 1
                    right[question.form] += found
                    refused += refusal
                row = {
                    "kind": kind,
                    "length": length,
                    "attention": name,
                    "right": right.total(),
                    "refused": refused,
                    "asked": asked.total(),
                    "settings": map_to_dict(adapter.settings) if adapter.settings else None,
                }
                results.append(row)
                line = "  %-12s length %5d %-10s right %.3f refused %.3f"
                shares = (count / row["asked"] for count in (row["right"], refused))
                log.info(line, kind, length, name, *shares)
                if args.forms:
                    for form, count in asked.items():
                        log.info("      %3d of %3d  %s", right[form], count, form)
    return results


def as_llama(decoder: Decoder, tokenizer: Any) -> PreTrainedModel:
    """Return a training model as this package runs it."""
    ends = tokenizer.eos_token_id
    model: Any = to_llama(decoder, tokenizer.bos_token_id, ends, tokenizer.pad_token_id)
    model.generation_config.eos_token_id = ends
    return model


def main(arguments: list[str] | None = None) -> None:
    """Probe a run's checkpoint, or the model that ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--forms", action="store_true", help="right answers by wording, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prose", type=Path, help="a text file; the King James Bible by default")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.FileHandler(args.run / "probe.txt"), logging.StreamHandler()],
    )
    decoder, folder = opened(args)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = as_llama(decoder, tokenizer)
    text = args.prose.read_text("utf-8") if args.prose else king_james()
    results = probe(model, tokenizer, Prose.tokenize(text, tokenizer), args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
