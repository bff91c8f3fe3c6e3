"""What each head of a checkpoint looks at where an answer's value is chosen.

    python -m training.heads --run runs/bundled

Documents of four facts alike from ``training.heldout``, no prose. For every head: the attention of
the place that chooses the value, on the right value, on the rest of its statement, on the other
statements and on the question; and the mean attention of all places on the tokens 0 to 4 before.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.export import opened
from training.heldout import ANY, TRAINED_QUESTION, crossed, stated
from training.model import Decoder, rotate

FORMS = ("The {x} of {y} is {v}.", "{v} is the {x} of {y}.")


@torch.no_grad()
def attention_weights(model: Decoder, ids: Tensor) -> list[Tensor]:
    """Return the attention of every layer, each [H, T, T], for ids [T]."""
    shape, length = model.shape, len(ids)
    x = model.table()[ids][None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    found = []
    for layer in model.layers:
        h = F.rms_norm(x, (shape.hidden,), layer.attention_norm, shape.norm_eps)
        q, k, _ = layer.qkv(h).view(length, 3, shape.heads, -1).permute(1, 2, 0, 3)
        q, k = (rotate(part, model.cos[:length], model.sin[:length]) for part in (q, k))
        scores = q @ k.mT / shape.head_size**0.5
        found.append(scores.masked_fill(~causal, float("-inf")).softmax(-1))
        x = layer(x, model.cos[:length], model.sin[:length])[0]
    return found


def document(tokenizer: Tokenizer, form: str, seed: int) -> tuple[list[int], dict[str, list[int]]]:
    """Return ids up to the place that chooses the value, and the places of its parts."""
    rng = random.Random(f"heads {seed}")
    facts = crossed(rng, ANY, 4)
    order = rng.sample(range(4), 4)
    ids = [0]
    places: dict[str, list[int]] = {"value": [], "statement": [], "others": [], "question": []}
    value = tokenizer.encode(f" {facts[0][2]}", add_special_tokens=False).ids
    skipped = int(tokenizer.decode(value[:1]).strip() == "")  # the space before digits
    for number in order:
        text = f" {stated(form, *facts[number])}"
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        span = list(range(len(ids), len(ids) + len(piece)))
        if number == 0:
            at = next(i for i in range(len(piece)) if piece[i : i + len(value)] == value)
            places["value"].append(span.pop(at + skipped))
        places["others" if number else "statement"] += span
        ids += piece
    attribute, whose, _ = facts[0]
    asked = TRAINED_QUESTION.format(x=attribute, y=whose)
    tail = tokenizer.encode(f"\n\nQuestion: {asked}\nAnswer:", add_special_tokens=False).ids
    tail += value[:skipped]
    places["question"] = list(range(len(ids), len(ids) + len(tail)))
    return ids + tail, places


def main() -> None:
    """Print a table of all heads for each wording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--samples", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, folder = opened(args)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for form in FORMS:
        sums = torch.zeros(model.shape.layers, model.shape.heads, 9)
        for seed in range(args.samples):
            ids, places = document(tokenizer, form, seed)
            for number, weights in enumerate(attention_weights(model, torch.tensor(ids))):
                parts = [weights[:, -1, where].sum(-1) for where in places.values()]
                parts += [weights.diagonal(-back, 1, 2).mean(-1) for back in range(5)]
                sums[number] += torch.stack(parts, -1)
        print(f"{form}\nhead  value statement others question | 0 to 4 tokens before")
        for number, layer in enumerate(sums / args.samples):
            for head, figures in enumerate(layer.tolist()):
                one, two = figures[:4], figures[4:]
                print(
                    f"{number}.{head}   {one[0]:.2f}     {one[1]:.2f}   {one[2]:.2f}     "
                    f"{one[3]:.2f} | {' '.join(f'{share:.2f}' for share in two)}"
                )


if __name__ == "__main__":
    main()
