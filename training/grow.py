"""Take a trained model over to a tokenizer that has more tokens than its own.

python -m training.grow --bundled --data runs/data --out runs/begun

A word that is a token without the space before it begins where the word with the space is, moved
by what tells such tokens apart elsewhere: the mean difference of all words that had both.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.export import export, opened
from training.model import Decoder
from training.tokenizer import SPACE, TOKENIZER_FILES

log = logging.getLogger(__name__)


@torch.no_grad()
def grown(model: Decoder, old: dict[str, int], new: dict[str, int]) -> Decoder:
    """Return the model with a row more in its embeddings for each token that ``new`` has more.

    Raises:
        ValueError: an old token has another id, or a new one is no word of which the one with a
            space is an old token.
    """
    if any(new.get(token) != place for token, place in old.items()):
        raise ValueError("the new tokenizer has other ids for the tokens of the old one")
    rows = model.embedding.weight
    pairs = [(old[word], place) for token, place in old.items() if (word := SPACE + token) in old]
    spaced, bare = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    difference = (rows[bare] - rows[spaced]).mean(0)
    larger = Decoder(replace(model.shape, vocabulary=len(new)))
    state = model.state_dict()
    added = rows.new_zeros(len(new) - len(old), rows.shape[1])
    for token, place in new.items():
        if token not in old:
            if SPACE + token not in old:
                raise ValueError(f"there is nothing to begin {token!r} with")
            added[place - len(old)] = rows[old[SPACE + token]] + difference
    larger.load_state_dict({**state, "embedding.weight": torch.cat([rows, added])})
    return larger.eval()


def main() -> None:
    """Write the grown model as a folder that ``training.train --weights`` takes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, help="folder of the model's checkpoint")
    model.add_argument("--bundled", action="store_true", help="the model that ships")
    parser.add_argument("--data", type=Path, required=True, help="folder of the new tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    decoder, run = opened(args)
    vocabularies = [
        Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        for folder in (run, args.data)
    ]
    larger = grown(decoder, *vocabularies)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (args.out / name).write_bytes((args.data / name).read_bytes())
    export(larger, args.out, torch.float32)
    log.info("%s: %d tokens, %d before", args.out, *map(len, reversed(vocabularies)))


if __name__ == "__main__":
    main()
