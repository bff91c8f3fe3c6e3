"""Start a run from a model that is already trained, with layers added that do nothing at first.

    python -m training.grow --model selfextend_rag/bundled --new-layers 2 --run runs/bundled
    python -m training.train --run runs/bundled

A layer whose last projections are zero hands its input on, so the grown model computes what the
other did, to the bit, and training starts from there, with the curriculum's stage ``--stage``. What
a new layer looks at is a copy of the layer before: from random weights, its heads still looked
everywhere alike after 0.9 million tokens.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from training.export import bundled_decoder
from training.model import Decoder, save_checkpoint
from training.tokenizer import TOKENIZER_FILES


def grown(model: Decoder, new_layers: list[int]) -> Decoder:
    """Return the same function with more layers.

    Args:
        model: the trained model; it is not changed.
        new_layers: the places, in the model that is returned, of the layers that are new.
    """
    larger = Decoder(replace(model.shape, layers=model.shape.layers + len(new_layers)))
    larger.embedding.load_state_dict(model.embedding.state_dict())
    larger.norm.data.copy_(model.norm.data)
    known = list(model.layers)
    taken = 0
    for place, layer in enumerate(larger.layers):
        new = place in new_layers
        taken += not new
        layer.load_state_dict(known[max(0, taken - 1)].state_dict())
        if new:
            torch.nn.init.zeros_(layer.out.weight)
            torch.nn.init.zeros_(layer.down.weight)
    return larger


def main() -> None:
    """Write the first checkpoint of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("selfextend_rag/bundled"))
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--new-layers", type=int, nargs="*", default=[2])
    parser.add_argument("--stage", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.run / "checkpoint.pt").exists():
        parser.error(f"{args.run} already has a checkpoint; choose another --run")
    torch.manual_seed(args.seed)
    model = grown(bundled_decoder(args.model), args.new_layers)
    args.run.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(args.model / name, args.run / name)
    save_checkpoint(args.run / "checkpoint.pt", model, progress={"stage": args.stage})


if __name__ == "__main__":
    main()
