"""Rows that share a prefix: token for token what each gives alone, with the prefix's keys once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from selfextend_rag.cache import GrowingLayer, QuantisedLayer, Row, RowsCache
from selfextend_rag.engine import BatchPrompt, Engine, GenerationSettings, Run, decode
from selfextend_rag.engine.run import forward
from selfextend_rag.errors import CacheMismatchError, UnsupportedModelError
from selfextend_rag.model import current_settings, extended
from selfextend_rag.model import rows as row_attention
from selfextend_rag.positions import SelfExtend
from tests import zoo
from tests.tiny import tiny_llama

READ = zoo.tokens(60, seed=1)[0].tolist()
LENGTHS = [(3, 20), (11, 5), (1, 33), (20, 12), (7, 1)]  # of the questions and the answers


MODELS = {
    "llama": tiny_llama,
    **{
        name: (lambda name=name: zoo.build(name)) for name in ("gemma3_text", "gpt_neox", "mistral")
    },
}


def prompts(read=READ, lengths=LENGTHS, **options):
    return [
        BatchPrompt(
            (*read, *zoo.tokens(question, seed=question)[0].tolist()),
            GenerationSettings(max_new_tokens=answer, stop_token_ids=(), **options),
        )
        for question, answer in lengths
    ]


def alone(engine, asked, prefix):
    return [list(engine.generate(p.tokens, p.options, prefix=prefix)) for p in asked]


def together(engine, asked, prefix, **options):
    answers = [[] for _ in asked]
    options = {"at_once": 16, **options}
    with engine.answers(asked, prefix=prefix, run=Run(), **options) as generation:
        for index, token in generation:
            answers[index].append(token)
    return answers


SETTINGS = (None, SelfExtend(4, 16), SelfExtend(3, 10))
CASES = [(name, x) for name in MODELS for x in SETTINGS if x is None or name != "mistral"]


@pytest.mark.parametrize("way", ["together", "row by row"])
@pytest.mark.parametrize(("family", "extension"), CASES, ids=str)
@pytest.mark.parametrize("read", [2, 60])
def test_rows_of_different_lengths_give_what_each_gives_alone(
    family, extension, read, way, monkeypatch
):
    """From 2 tokens on, the rows cross W, and every multiple of G, at steps of their own."""
    ways = []
    fits = (lambda *given: False) if way == "row by row" else row_attention._fits_together
    monkeypatch.setattr(
        row_attention, "_fits_together", lambda *given: ways.append(fits(*given)) or ways[-1]
    )
    engine = Engine(MODELS[family]().double().eval(), chunk_size=32)
    prefix = engine.prefill(READ[:read], settings=extension)
    assert engine.rows_unsupported_reason(prefix) == ""
    asked = prompts(READ[:read])
    expected = alone(engine, asked, prefix)
    assert len({tuple(tokens) for tokens in expected}) == len(asked)
    for at_once in (3, 16):
        assert together(engine, asked, prefix, at_once=at_once) == expected
    assert any(ways) == (way == "together" and family != "mistral")  # which slides in all layers
    assert alone(engine, asked, prefix) == expected


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("family", "extension"), CASES[:-1], ids=str)  # none of mistral's layers
@pytest.mark.parametrize("read", [2, 60])
def test_rows_in_few_bits_give_what_each_gives_alone(family, extension, read, bits):
    engine = Engine(MODELS[family]().double().eval(), chunk_size=32, kv_bits=bits)
    prefix = engine.prefill(READ[:read], settings=extension)
    assert engine.rows_unsupported_reason(prefix) == ""
    held = [dict(x.tensors()) for x in prefix.cache.layers if isinstance(x, QuantisedLayer)]
    held = [{name: x.clone() for name, x in tensors.items()} for tensors in held]
    assert held
    asked = prompts(READ[:read])
    expected = alone(engine, asked, prefix)
    assert len({tuple(tokens) for tokens in expected}) == len(asked)
    for at_once in (3, 16):
        assert together(engine, asked, prefix, at_once=at_once) == expected
    assert alone(engine, asked, prefix) == expected
    now = [x.tensors() for x in prefix.cache.layers if isinstance(x, QuantisedLayer)]
    for before, after in zip(held, now, strict=True):
        assert all(torch.equal(x, after[name]) for name, x in before.items())


@pytest.mark.parametrize("extension", [None, SelfExtend(4, 16)], ids=str)
def test_the_keys_of_the_prefix_are_not_copied(monkeypatch, extension):
    engine = Engine(tiny_llama())
    asked = prompts()
    space = len(READ) + 60
    prefix = engine.prefill(READ, settings=extension, capacity=space)
    alone(engine, asked, prefix)  # the grouped keys are there from now on
    held, places = prefix.cache.nbytes, [x.keys.data_ptr() for x in prefix.cache.layers]
    taken = []
    real = Row.__init__

    def init(row, cache, shared, capacity):
        real(row, cache, shared, capacity)
        taken.append((row, capacity))

    monkeypatch.setattr(Row, "__init__", init)
    together(engine, asked, prefix)
    assert prefix.cache.nbytes == held
    assert [x.keys.data_ptr() for x in prefix.cache.layers] == places
    assert prefix.cache.get_seq_length() == len(READ)
    assert len(taken) == len(asked)
    one_token = sum(
        x.keys[:, :, :1].nbytes + x.values[:, :, :1].nbytes for x in prefix.cache.layers
    )
    for (row, capacity), (question, answer) in zip(taken, LENGTHS, strict=True):
        assert capacity == question + answer
        assert row.nbytes == one_token * capacity


def test_no_more_rows_than_asked_for_and_an_ended_one_makes_room(monkeypatch):
    engine = Engine(tiny_llama())
    prefix = engine.prefill(READ)
    sizes, real = [], decode.step

    def step(model, rows, tokens, prefix):
        sizes.append(len(rows))
        return real(model, rows, tokens, prefix)

    monkeypatch.setattr(decode, "step", step)
    asked = prompts()
    together(engine, asked, prefix, at_once=2)
    assert max(sizes) == 2
    assert sum(sizes) == sum(answer - 1 for _, answer in LENGTHS)
    assert sizes.count(2) > 20
    with pytest.raises(ValueError, match="at_once must be a positive integer, got 0"):
        engine.answers(asked, prefix=prefix, at_once=0, run=Run())


def test_a_stopped_row_leaves_and_the_others_go_on():
    engine = Engine(tiny_llama())
    prefix = engine.prefill(READ, settings=SelfExtend(4, 16))
    asked = prompts()
    expected = alone(engine, asked, prefix)
    answers = [[] for _ in asked]
    with engine.answers(asked, prefix=prefix, at_once=16, run=Run()) as generation:
        for index, token in generation:
            answers[index].append(token)
            if index == 0 and len(answers[0]) == 4:
                generation[0].end()
    assert answers == [expected[0][:4], *expected[1:]]
    assert [generation[i].finish_reason for i in range(5)] == ["cancelled", *["length"] * 4]
    assert generation[0].usage.completion_tokens == 4
    assert generation[2].usage.completion_tokens == 33


def test_an_end_token_ends_its_own_row():
    engine = Engine(tiny_llama())
    prefix = engine.prefill(READ)
    asked = prompts()
    expected = alone(engine, asked, prefix)
    end = next(t for t in expected[0][2:] if expected[0].index(t) > 1)
    settings = GenerationSettings(max_new_tokens=20, stop_token_ids=(end,))
    asked[0] = BatchPrompt(asked[0].tokens, settings)
    answers = [[] for _ in asked]
    with engine.answers(asked, prefix=prefix, at_once=16, run=Run()) as generation:
        for index, token in generation:
            answers[index].append(token)
    assert answers == [expected[0][: expected[0].index(end)], *expected[1:]]
    assert [generation[i].finish_reason for i in range(2)] == ["stop", "length"]


@pytest.mark.parametrize("mine", [None, SelfExtend(2, 8)], ids=str)
@pytest.mark.parametrize("extension", [None, SelfExtend(4, 16)], ids=str)
def test_a_forward_that_fails_midway_leaves_prefix_and_model_as_they_were(mine, extension):
    model = tiny_llama()
    engine = Engine(model)
    prefix = engine.prefill(READ, settings=extension)
    asked = prompts()
    expected = alone(engine, asked, prefix)
    left = [9]

    def fail(*_):
        left[0] -= 1
        if not left[0]:
            raise MemoryError("no space for the second layer")

    generation = engine.answers(asked, prefix=prefix, at_once=16, run=Run())
    with nullcontext() if mine is None else extended(model, mine):
        name = model.config._attn_implementation
        hook = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            list(generation)
        hook.remove()
        assert current_settings(model) == (mine and (mine, "auto"))
        assert model.config._attn_implementation == name
    assert prefix.cache.get_seq_length() == len(READ)
    assert generation[0].finish_reason == "cancelled"
    assert together(engine, asked, prefix) == expected


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("lfm2", "LinearAttentionLayer, whose state can't be shared"),
        ("llama4_text", "layers of chunked_attention"),
        ("bloom", "takes no position_ids"),
        ("deepseek_v2", "layer 0 does not attend through the attention function"),
    ],
)
def test_models_that_can_not_are_told_apart_with_the_reason(family, says):
    engine = Engine(zoo.build(family))
    assert says in engine.rows_unsupported_reason(engine.prefill(READ))


def test_a_model_whose_attention_does_not_look_for_rows_is_told_apart(monkeypatch):
    """Without the switch, plain attention takes the new keys for all there are."""
    engine = Engine(tiny_llama())
    prefix = engine.prefill(READ)
    monkeypatch.setattr(decode, "by_rows", lambda model: torch.no_grad())
    says = "layer 0 does not attend through the attention function of its configuration"
    with pytest.raises(UnsupportedModelError, match=says):
        together(engine, prompts(), prefix)
    assert says in engine.rows_unsupported_reason(prefix)


def test_a_model_that_counts_positions_otherwise_is_told_apart():
    """Its rows would run without an error, and answer as at other positions."""
    model = tiny_llama()
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
    )
    engine = Engine(model)
    assert "its logits would change by" in engine.rows_unsupported_reason(engine.prefill(READ))


def test_positions_of_rows_are_checked_by_an_extended_model():
    engine = Engine(tiny_llama())
    settings = SelfExtend(4, 16)
    prefix = engine.prefill(READ, settings=settings)
    row = Row(prefix.cache, 50, 20)
    cache = RowsCache(prefix.cache, [row])
    with (
        extended(engine.model, settings),
        pytest.raises(ValueError, match=r"are at \[60\], and position_ids say \[61\]"),
    ):
        forward(engine.model, [[5]], cache, [[61]])


def test_prompts_that_do_not_continue_the_prefix_are_refused():
    engine = Engine(tiny_llama())
    prefix = engine.prefill(READ)
    asked = [*prompts(), BatchPrompt((1, 2, 3), GenerationSettings())]
    with pytest.raises(CacheMismatchError, match="does not begin with the 60 cached ones"):
        engine.answers(asked, prefix=prefix, at_once=16, run=Run())


def test_layers_of_the_prefix_stay_what_they_were():
    engine = Engine(zoo.build("gemma3_text").double(), chunk_size=32)
    prefix = engine.prefill(READ, settings=SelfExtend(4, 16))
    kinds = [type(layer) for layer in prefix.cache.layers]
    kept = [layer.keys.clone() for layer in prefix.cache.layers]
    together(engine, prompts(), prefix)
    assert [type(layer) for layer in prefix.cache.layers] == kinds
    assert GrowingLayer in kinds
    for layer, before in zip(prefix.cache.layers, kept, strict=True):
        assert torch.equal(layer.keys, before)
