"""What tests of benchmarks share: records in files, tokenizers without a model."""

import gzip
import json

from selfextend_rag.evals.benchmarks import (
    Source,
    SyntheticOptions,
    selected_tasks,
)
from tests.tiny import byte_tokenizer

SMALL = SyntheticOptions(lengths=(1500,), samples=2, seed=1, depths=3)


class Bytes:
    """A token a byte, after a start token."""

    def encode(self, text):
        return [0, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"]]

    def decode(self, tokens):
        return byte_tokenizer().decode(tokens, skip_special_tokens=True)


class Words:
    """A token a word or space, which is fast."""

    def encode(self, text):
        return ["", *text.replace(" ", "\x00 \x00").split("\x00")]

    def decode(self, tokens):
        return "".join(tokens)


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def prompt(item, place=0):
    question = item.questions[place]
    return item.before + item.document + question.text + question.begin


def items(name, folder, options=SMALL, tokens=None):
    tasks, _ = selected_tasks([name], Source(folder), options)
    (task,) = tasks
    return task, list(task.items(tokens or Words()))


LONGBENCH = {
    "input": "Who?",
    "context": "Anna came.",
    "answers": ["Anna", "She"],
    "length": 4100,
    "all_classes": None,
    "_id": "a1",
}
