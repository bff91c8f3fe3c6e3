"""The probe decodes as the package does, and tells right answers from refusals."""

import argparse
import logging

import pytest
import torch
from transformers import AutoTokenizer

from selfextend_rag.bundled import FOLDER
from selfextend_rag.evals.prose import Prose
from training.heldout import KINDS, Question
from training.model import Decoder, ModelShape
from training.probe_eval import answered, as_llama, attentions, probe

END = 1


class Given:
    """What always gives the same tokens."""

    def __init__(self, *ids):
        self.ids = ids

    def generate(self, prompt, most):
        return list(self.ids[:most])


@pytest.mark.parametrize(
    ("given", "right", "refused"),
    [
        ((5, 6), True, False),
        ((5, 6, 7), False, False),  # goes on
        ((5,), False, False),  # ends early
        ((8, 9, 10), False, True),
        ((8, 9), False, False),
    ],
)
def test_an_answer_is_right_with_its_end_alone(given, right, refused):
    question = Question((2, 3), answer=(5, 6, END), refusal=(8, 9, 10, END), form="")
    assert answered(Given(*given), question, END) == (right, refused)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = ModelShape(len(tokenizer), hidden=32, layers=1, heads=2, head_size=16, intermediate=48)
    return as_llama(Decoder(shape), tokenizer)


def test_what_fits_the_window_runs_plain_and_the_rest_is_extended(model):
    names = [[name for name, _ in attentions(model, n, plain=True)] for n in (512, 513, 2048)]
    assert names == [["plain"], ["plain", "selfextend"], ["plain", "selfextend"]]
    ((_, adapter),) = attentions(model, 2048, plain=False)
    assert adapter.settings.extended_window(512) >= 2048


def test_each_kind_is_asked_at_each_length(model, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    prose = Prose.tokenize("The river ran low in summer. Nobody knew why. " * 120, tokenizer)
    asked = argparse.Namespace(
        lengths=[200, 700], kinds=list(KINDS), plain=False, seed=0, samples=2, forms=False
    )
    rows = probe(model, tokenizer, prose, asked)
    assert [(row["kind"], row["length"]) for row in rows] == [
        (kind, length) for length in (200, 700) for kind in KINDS
    ]
    assert {row["asked"] for row in rows} == {2}
    assert [row["attention"] for row in rows] == ["plain"] * 8 + ["selfextend"] * 8
