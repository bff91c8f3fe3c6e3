"""Sampling: the frequencies that come out, and what is left of the global random state."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.engine.sampling import Sampler
from tests.tiny import tiny_llama

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -8.0]])
PROMPT = list(range(5, 30))


def drawn(count=4000, prompt=(), **settings):
    sampler = Sampler(
        GenerationSettings(**{"temperature": 1, "seed": 1, **settings}), prompt, LOGITS.device
    )
    return Counter(sampler.pick(LOGITS) for _ in range(count))


@pytest.mark.parametrize("temperature", [0.5, 1, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    counts = drawn(temperature=temperature)
    expected = (LOGITS[0].double() / temperature).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        spread = (4000 * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - 4000 * probability) <= 4.5 * spread + 1


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0}),  # 0.644 alone
        ({"top_p": 0.7}, {0, 1}),  # 0.644 + 0.237
        ({"min_p": 0.2}, {0, 1}),  # the third has 0.135 of the first
        ({"min_p": 0.1}, {0, 1, 2}),
        ({"top_k": 3, "min_p": 0.2}, {0, 1}),
    ],
)
def test_filters_leave_the_tokens_they_should(filters, left):
    assert set(drawn(**filters)) == left


def test_temperature_zero_takes_the_likeliest_whatever_the_filters():
    assert drawn(count=50, temperature=0, top_k=3) == {0: 50}


def test_the_repetition_penalty_weighs_prompt_and_answer():
    assert drawn(count=1, temperature=0, prompt=[0], repetition_penalty=2.5) == {1: 1}
    # 2 and then 2 / 2.5 < 1: the second token, and then the first again
    assert drawn(count=3, temperature=0, repetition_penalty=2.5) == {0: 2, 1: 1}


def test_a_seed_repeats_an_answer_and_leaves_the_global_state_alone():
    engine = Engine(tiny_llama())
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other, free, unseeded = (
        list(engine.generate(PROMPT, GenerationSettings(temperature=2, seed=seed,
                                                        max_new_tokens=20)))
        for seed in (5, 5, 6, None, None)
    )  # fmt: skip
    assert first == again
    assert len({tuple(x) for x in (first, other, free, unseeded)}) == 4
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"seed": "x"},
        {"seed": 1 << 64},
        {"stop": ("a", "")},
        {"stop": (1,)},
        {"stop_token_ids": ("a",)},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationSettings(**wrong)


def test_one_stop_string_need_not_be_wrapped():
    assert GenerationSettings(stop="end").stop == ("end",)
    assert GenerationSettings(stop=["a", "b"]).stop == ("a", "b")
