"""Take a trained model over to a tokenizer that has more tokens than its own.

python -m training.grow --bundled --data runs/data --out runs/begun

Words that are new tokens without the space before them are the words with the space, moved by a
vector that all share. It begins as the mean difference of all words that had both.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.export import export, opened
from training.model import Decoder
from training.tokenizer import SPACE, TOKENIZER_FILES, spaced_words

log = logging.getLogger(__name__)


@torch.no_grad()
def grown(model: Decoder, old: dict[str, int], new: dict[str, int]) -> Decoder:
    """Return the model with the tokens that ``new`` has more: the old ones with a space before
    them, moved by the mean difference of all words that had both.

    Raises:
        ValueError: an old token has another id, or a new one is no word of which the one with a
            space is an old token.
    """
    if any(new.get(token) != place for token, place in old.items()):
        raise ValueError("the new tokenizer has other ids for the tokens of the old one")
    spaced = spaced_words(new, len(old))
    rows = model.table()
    pairs = [(old[word], place) for token, place in old.items() if (word := SPACE + token) in old]
    with_space, without = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    larger = Decoder(replace(model.shape, vocabulary=len(new), spaced=spaced))
    unspaced = (rows[without] - rows[with_space]).mean(0)
    larger.load_state_dict({**model.state_dict(), "embedding.weight": rows, "unspaced": unspaced})
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
