"""What weights in 8 and 4 bits cost a model: nats a token on texts, next to full precision.

    python benchmarks/weight_bits.py --model FOLDER examples/documents/genesis.txt CONTRIBUTING.md

Each text is cut into rows of ``--tokens``, of which the first ``--rows`` are taken, and each row is
predicted whole, with plain attention. 4 bits are computed in bfloat16, so they are compared with
full precision in it.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer

WAYS = (
    *((None, torch.float32), (8, torch.float32)),
    *((None, torch.bfloat16), (8, torch.bfloat16), (4, torch.bfloat16)),
)


def rows_of(
    tokenizer: PreTrainedTokenizerBase, text: str, tokens: int, most: int
) -> list[list[int]]:
    """Return the first rows of a text, each behind the start token if the model has one."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    size = tokens - len(start)
    return [start + ids[at : at + size] for at in range(0, len(ids), size)][:most]


@torch.inference_mode()
def nats(model: PreTrainedModel, rows: list[list[int]]) -> float:
    """Return the mean cross-entropy of all tokens but the first of each row."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([row])).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))
        count += len(row) - 1
    return total / count


def table(found: list[dict[str, object]], names: list[str]) -> str:
    """Return nats a token, and of rounded weights by how much perplexity grows."""
    lines = [f"| weights | {' | '.join(names)} | all |", "|" + " --- |" * (len(names) + 2)]
    full = {x["dtype"]: x["nats"] for x in found if x["weight_bits"] is None}
    for each in found:
        bits, dtype, values = each["weight_bits"], each["dtype"], each["nats"]
        assert isinstance(values, list)
        values = [*values, sum(values) / len(values)]
        cells = [f"{x:.3f}" for x in values]
        if bits is not None:
            base = full[dtype]
            assert isinstance(base, list)
            before = [*base, sum(base) / len(base)]
            cells = [
                f"{x:.3f} ({100 * math.expm1(x - y):+.1f} %)"
                for x, y in zip(values, before, strict=True)
            ]
        kind = f"{bits} bits, {dtype}" if bits else str(dtype)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure each way to keep the weights on each text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=2, help="of each text")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)
    rows = [rows_of(tokenizer, x.read_text("utf-8"), args.tokens, args.rows) for x in args.texts]
    found: list[dict[str, object]] = []
    for bits, dtype in WAYS:
        model = load_model(args.model, weight_bits=bits, dtype=dtype)
        kind = str(dtype).removeprefix("torch.")
        found.append(
            {"weight_bits": bits, "dtype": kind, "nats": [nats(model, each) for each in rows]}
        )
    names = [path.name for path in args.texts]
    if args.json:
        about = {"texts": names, "tokens": [sum(map(len, each)) for each in rows], "ways": found}
        args.json.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    print(table(found, names))


if __name__ == "__main__":
    main()
