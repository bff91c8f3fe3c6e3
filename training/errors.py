"""Where a checkpoint chooses wrongly: documents of facts alone, by wording and by what is shared.

    python -m training.errors --run runs/bundled --facts 4

No prose, one question a document, the training's own generator with another seed: this shows what
a training run has not learned yet, where ``training.probe_eval`` shows what it is worth.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.export import opened
from training.facts import Fact, FactMaker
from training.model import Decoder
from training.questions import VERBS
from training.wordings import NOT_STATED


def kind(fact: Fact) -> str:
    """Return what sort of statement a fact is."""
    if fact.value == NOT_STATED:
        return "not stated"
    if fact.attribute in VERBS or fact.attribute in ("time", "place"):
        return "deed"
    if fact.statement.startswith(fact.value):
        return "value first"
    return "value last"


def question_form(fact: Fact) -> str:
    """Return whether the question is in the trained form."""
    form = f"What is the {fact.attribute} of {fact.owner}?"
    return "trained question" if fact.question == form else "other question"


@torch.no_grad()
def given(model: Decoder, tokenizer: Tokenizer, text: str, most: int = 12) -> str:
    """Return the greedy answer to a prompt."""
    ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids]
    start = len(ids)
    while len(ids) < start + most:
        ids.append(int(model(torch.tensor([ids]), torch.tensor([len(ids) - 1])).argmax()))
        if ids[-1] == 1:
            break
    return tokenizer.decode(ids[start:]).strip()


def main() -> None:
    """Print right answers and kinds of errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--data", type=Path, default=Path("runs/data"))
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    maker = FactMaker(json.loads((args.data / "words.json").read_text()), rng)
    model, folder = opened(args)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for _ in range(args.samples):
        facts = maker.facts(args.facts)
        fact = maker.unstated(facts) if rng.random() < 0.1 else rng.choice(facts)
        document = " ".join(each.statement for each in facts)
        answer = given(model, tokenizer, f"{document}\n\nQuestion: {fact.question}\nAnswer:")
        groups = [kind(fact), question_form(fact), "all"]
        if fact.value.isdigit():
            groups.append("digits")
        asked.update(groups)
        if answer == fact.value:
            right.update(groups)
            continue
        others = [each for each in facts if each.value == answer]
        if not others:
            wrong["begun rightly" if answer[:2] == fact.value[:2] else "no value at all"] += 1
        elif others[0].owner == fact.owner:
            wrong["another attribute of the owner"] += 1
        elif others[0].attribute == fact.attribute:
            wrong["the attribute of another owner"] += 1
        else:
            wrong["another fact"] += 1
    for group, count in sorted(asked.items()):
        print(f"{group:18} {right[group] / count:.2f} of {count}")
    for error, count in wrong.most_common():
        print(f"   {count:3} {error}")


if __name__ == "__main__":
    main()
