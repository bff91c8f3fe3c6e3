"""What a constraint rules out never comes, however the rest is sampled; and it ends the answer."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.engine import Engine, GenerationSettings
from tests.tiny import tiny_llama

PROMPT = list(range(5, 30))


class Only:
    """Lets a few tokens through, each once, and then nothing."""

    def __init__(self, *tokens):
        self.left = list(tokens)
        self.seen = []

    def mask(self, scores):
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self.left] = scores[:, self.left]
        return allowed

    def accept(self, token):
        self.left.remove(token)
        self.seen.append(token)

    @property
    def finished(self):
        return not self.left


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 2.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.1},
        {"temperature": 1.0, "min_p": 0.9},
        {"repetition_penalty": 1.5},
    ],
)
def test_only_what_is_let_through_comes_and_the_last_of_it_ends_the_answer(settings):
    engine = Engine(tiny_llama())
    constraint = Only(200, 7, 90)
    settings = GenerationSettings(seed=1, max_new_tokens=20, **settings)
    running = engine.generate(PROMPT, settings, constraint=constraint)
    assert sorted(running) == [7, 90, 200]
    assert running.finish_reason == "stop"
    assert len(constraint.seen) == 3


def test_the_likeliest_of_what_is_let_through_comes_first():
    engine = Engine(tiny_llama())
    order = list(
        engine.generate(PROMPT, GenerationSettings(max_new_tokens=1), constraint=Only(200, 7, 90))
    )
    with torch.inference_mode():
        logits = engine.model(torch.tensor([PROMPT])).logits[0, -1]
    assert order == [max((200, 7, 90), key=lambda token: float(logits[token]))]


def test_a_budget_that_is_used_up_first_is_reported():
    engine = Engine(tiny_llama())
    settings = GenerationSettings(max_new_tokens=2)
    running = engine.generate(PROMPT, settings, constraint=Only(200, 7, 90))
    assert len(list(running)) == 2
    assert running.finish_reason == "length"


def test_a_constraint_that_lets_everything_through_changes_nothing():
    engine = Engine(tiny_llama())
    settings = GenerationSettings(temperature=1, seed=3, max_new_tokens=20)

    class Free(Only):
        def mask(self, scores):
            return scores

        def accept(self, token):
            pass

    free = list(engine.generate(PROMPT, settings, constraint=Free(0)))
    assert free == list(engine.generate(PROMPT, settings))


def test_what_goes_wrong_in_a_constraint_is_raised_and_the_model_is_free_again():
    engine = Engine(tiny_llama())

    class Broken(Only):
        def mask(self, scores):
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        list(engine.generate(PROMPT, constraint=Broken(1)))
    assert list(engine.generate(PROMPT, GenerationSettings(max_new_tokens=2)))
