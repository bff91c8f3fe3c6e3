"""Write signs among pictures as Visual Haystacks has its data, for ``selfextend-rag eval vhs``.

    python -m training.haystacks --out runs/haystacks
    selfextend-rag eval vhs --model runs/vision --data runs/haystacks --answer-tokens 6

The benchmark asks for yes or no, about photographs; these ask for the number of a sign, the one of
its colour and shape among as many other pictures, since the toy of ``training.vision`` knows those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from training.signs import haystack

COUNTS = (10, 40, 80, 160)
_SHARE = 0.1  # of the other pictures that are signs too


def write_haystacks(folder: Path, counts: Sequence[int], records: int, seed: int = 0) -> None:
    """Write so many records of each number of pictures, and the pictures."""
    images, rng = import_module("PIL.Image"), np.random.default_rng(seed)
    questions, pictures = (
        folder / "VHs_qa/VHs_full/single_needle",
        folder / "coco/val2017",
    )
    for made in (questions, pictures):
        made.mkdir(parents=True, exist_ok=True)
    written = 0
    for count in counts:
        found = []
        for _ in range(records):
            signs, (needle,) = haystack(rng, count, (0.5,), _SHARE)
            names = [f"coco/val2017/{written + n:012d}.png" for n in range(count)]
            written += count
            for sign, name in zip(signs, names, strict=True):
                images.fromarray(sign.pixels(rng)).save(folder / name)
            asked = f"<image>\n{signs[needle].question}"
            turns = (("human", asked), ("gpt", str(signs[needle].number)))
            found.append(
                {
                    "conversations": [{"from": who, "value": said} for who, said in turns],
                    "pos_image": [names.pop(needle)],
                    "neg_image": names,
                }
            )
        (questions / f"visual_haystack_{count}.json").write_text(json.dumps(found, indent=1))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/haystacks"))
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="pictures")
    parser.add_argument("--records", type=int, default=5, help="of each number of pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_haystacks(args.out, args.counts, args.records, args.seed)


if __name__ == "__main__":
    main()
