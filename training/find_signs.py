"""Measure whether a sign is found among pictures: plain and extended, by length and depth.

    python -m training.find_signs --documents 20

Each document is pictures alone, a tenth of them signs; ten signs are asked for, one in each tenth.
Chance is a number of two digits: 1 in 90.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from selfextend_rag import LongContextLLM
from training.signs import document, haystack
from training.vision import vision_model

DEPTHS = tuple((tenth + 0.5) / 10 for tenth in range(10))
PICTURES = {1: 19, 2: 38, 4: 80, 8: 160, 16: 324}  # of 25 tokens each, for so many windows of 512
SHARE = 0.1  # of the pictures that are signs too


def found_by_depth(llm: LongContextLLM, pictures: int, documents: int, seed: int) -> list[int]:
    """Return how many signs of so many documents are found, in each tenth of their length."""
    rng, right = np.random.default_rng((seed, pictures)), [0] * len(DEPTHS)
    for _ in range(documents):
        signs, places = haystack(rng, pictures, DEPTHS, SHARE)
        questions = [signs[place].question for place in places]
        reading = llm.read(document(rng, signs), question=questions, max_new_tokens=6)
        answers = reading.ask_batch(questions, max_new_tokens=6)
        for tenth, (place, answer) in enumerate(zip(places, answers, strict=True)):
            right[tenth] += answer.text.strip() == str(signs[place].number)
    return right


def main() -> None:
    """Print a line of JSON for each length and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, nargs="+", default=list(PICTURES))
    parser.add_argument("--documents", type=int, default=20, help="of each length, ten signs each")
    parser.add_argument("--methods", nargs="+", default=["selfextend", "plain"])
    parser.add_argument("--neighbor-window", type=int, help="by default a quarter of the window")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = vision_model()
    for windows in args.windows:
        for method in args.methods:
            how = "never" if method == "plain" else "auto"
            near = None if method == "plain" else args.neighbor_window
            llm = LongContextLLM(
                model, processor.tokenizer, processor=processor, extension=how, neighbor_window=near
            )
            since = time.monotonic()
            right = found_by_depth(llm, PICTURES[windows], args.documents, args.seed)
            row = {
                "windows": windows,
                "pictures": PICTURES[windows],
                "method": method,
                "right": sum(right),
                "of": len(DEPTHS) * args.documents,
                "by_depth": right,
                "seconds": round(time.monotonic() - since),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
