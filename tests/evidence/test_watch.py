"""The weights that are recorded are those of the softmax, whatever the layer and the way to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.evidence.watch import AttentionWatch
from selfextend_rag.model import extended, support
from selfextend_rag.positions import SelfExtend
from tests import oracle, zoo
from tests.tiny import tiny_llama

LENGTH, NEW = 45, 6
SETTINGS = SelfExtend(4, 7)
# Softcap, sinks, sliding and chunked windows, latent attention, partial and interleaved rotary,
# layers without rotary, recurrent layers, layers that share keys.
FAMILIES = [
    *("llama", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mistral", "gpt_neox", "glm4"),
    *("llama4_text", "qwen3_next", "gemma3n_text", "smollm3", "phi3"),
]
# Largest error over the largest weight: what float32 models differ by from run to run.
TOLERANCE = 2e-5


def answer(engine, prompt, extension, prefix=None, new=NEW, stop=()):
    observer = AttentionWatch([len(prompt)], every_layer=True)
    (watch,) = observer.answers
    options = GenerationSettings(max_new_tokens=new, stop_token_ids=stop)
    tokens = []
    with engine.generate(
        prompt, options, prefix=prefix, settings=extension, observer=observer
    ) as generation:
        for token in generation:
            tokens.append(token)
            watch.answer_tokens = len(tokens)
    return tokens, watch


def expected(model, prompt, tokens, extension, skipped=()):
    """The oracle's weights of the positions that predicted the answer, summed."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    layers = support(model).extended_layers if extension else ()
    group, window = (extension.group_size, extension.neighbor_window) if extension else (1, 1)
    found = oracle.oracle_weights(model, ids, group, window, layers)
    rows = slice(len(prompt) - 1, len(prompt) - 1 + len(tokens))
    total = np.zeros(ids.shape[1])
    for name, weights in found.items():
        if name not in skipped:
            total += weights[:, rows, : ids.shape[1]].sum((0, 1)).numpy()
    return total


def assert_close(mass, right, tolerance=TOLERANCE):
    assert np.abs(mass[: len(right)] - right).max() <= tolerance * right.max()


@pytest.mark.parametrize("extension", [None, SETTINGS], ids=["plain", "extended"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mass_is_the_sum_of_the_oracle_s_weights(name, extension):
    model = zoo.build(name)
    if extension and not support(model).supported:
        pytest.skip(f"refused: {support(model).reason}")
    engine = Engine(model, chunk_size=17)
    prompt = zoo.tokens(LENGTH)[0].tolist()
    tokens, watch = answer(engine, prompt, extension)
    assert len(tokens) == NEW
    assert watch.skipped == {}
    assert_close(watch.mass, expected(model, prompt, tokens, extension))
    unwatched = GenerationSettings(max_new_tokens=NEW, stop_token_ids=())
    assert list(engine.generate(prompt, unwatched, settings=extension)) == tokens


@pytest.fixture(scope="module")
def tiny():
    return tiny_llama(window=128)


PROMPT = [5 + (i * i * 7 + i) % 250 for i in range(97)]
WAYS = pytest.mark.parametrize("extension", [None, SelfExtend(4, 16)], ids=["plain", "extended"])


@WAYS
@pytest.mark.parametrize("chunk", [1, 32, 96, 97, 200])
@pytest.mark.parametrize("read", [0, 1, 60, 96])
def test_chunks_and_reused_prefixes_weigh_the_same(tiny, extension, chunk, read):
    engine = Engine(tiny, chunk_size=chunk)
    prefix = engine.prefill(PROMPT[:read], settings=extension) if read else None
    for _ in range(2):  # a prefix is left as it was found
        tokens, watch = answer(engine, PROMPT, extension, prefix)
        assert_close(watch.mass, expected(tiny, PROMPT, tokens, extension), 1e-6)


@WAYS
def test_the_only_query_of_a_short_answer_sees_its_neighbors_as_they_are(tiny, extension):
    """The block of keys that ends at it was taken from the grouped ones, which end before."""
    tokens, watch = answer(Engine(tiny), PROMPT, extension, new=1)
    assert_close(watch.mass, expected(tiny, PROMPT, tokens, extension), 1e-6)


@WAYS
def test_a_long_answer_is_weighed_in_batches(tiny, extension, monkeypatch):
    monkeypatch.setattr("selfextend_rag.evidence.watch._AT_ONCE", 5)
    monkeypatch.setattr("selfextend_rag.evidence.watch._SPARE", 3)
    tokens, watch = answer(Engine(tiny), PROMPT[:50], extension, new=40)
    assert_close(watch.mass, expected(tiny, PROMPT[:50], tokens, extension), 1e-6)


def test_a_long_answer_past_a_sliding_window(monkeypatch):
    monkeypatch.setattr("selfextend_rag.evidence.watch._AT_ONCE", 5)
    monkeypatch.setattr("selfextend_rag.evidence.watch._SPARE", 3)
    model = zoo.build("mistral", sliding_window=8)
    prompt = zoo.tokens(LENGTH)[0].tolist()
    tokens, watch = answer(Engine(model, chunk_size=10), prompt, None, new=30)
    assert_close(watch.mass, expected(model, prompt, tokens, None))


@WAYS
def test_blocks_of_keys_make_no_difference(tiny, extension, monkeypatch):
    tokens, whole = answer(Engine(tiny), PROMPT, extension)
    monkeypatch.setattr("selfextend_rag.attention.mass._AT_ONCE", 1)
    monkeypatch.setattr("selfextend_rag.attention.mass._KEPT", 0)
    again, watch = answer(Engine(tiny), PROMPT, extension)
    assert again == tokens
    assert np.allclose(watch.mass, whole.mass, rtol=1e-12, atol=0)


@WAYS
def test_the_position_that_predicts_the_end_does_not_count(tiny, extension):
    tokens, _ = answer(Engine(tiny), PROMPT, extension, new=20)
    end = next(n for n in range(3, 20) if tokens[n] not in tokens[:n])
    stopped, watch = answer(Engine(tiny), PROMPT, extension, new=20, stop=(tokens[end],))
    assert stopped == tokens[:end]
    assert_close(watch.mass, expected(tiny, PROMPT, stopped, extension), 1e-6)


@WAYS
def test_who_takes_fewer_tokens_weighs_fewer(tiny, extension):
    """As after a stop text, when the generation is closed with tokens left."""
    tokens, _ = answer(Engine(tiny), PROMPT, extension)
    observer = AttentionWatch([len(PROMPT)], every_layer=True)
    (watch,) = observer.answers
    settings = GenerationSettings(max_new_tokens=NEW, stop_token_ids=())
    generation = Engine(tiny).generate(PROMPT, settings, settings=extension, observer=observer)
    for _ in range(4):
        next(generation)
    watch.answer_tokens = 3
    generation.close()
    assert_close(watch.mass, expected(tiny, PROMPT, tokens[:3], extension)[: len(PROMPT)], 1e-6)


@WAYS
@pytest.mark.parametrize("chunk", [20, 200])
@pytest.mark.parametrize("layers", [2, 3, 5, 8])
def test_the_middle_half_of_the_layers_counts(extension, chunk, layers):
    model = tiny_llama(window=128, num_hidden_layers=layers)
    observer = AttentionWatch([len(PROMPT)])
    (watch,) = observer.answers
    settings = GenerationSettings(max_new_tokens=NEW, stop_token_ids=())
    tokens = []
    for token in Engine(model, chunk_size=chunk).generate(
        PROMPT, settings, settings=extension, observer=observer
    ):
        tokens.append(token)
        watch.answer_tokens = len(tokens)
    edge = layers // 4
    outside = [f"model.layers.{n}.self_attn" for n in (*range(edge), *range(layers - edge, layers))]
    assert_close(watch.mass, expected(model, PROMPT, tokens, extension, outside), 1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_plain_model_is_left_as_it_was(implementation):
    model = tiny_llama(window=128)
    model.set_attn_implementation(implementation)
    tokens, watch = answer(Engine(model), PROMPT, None)
    assert model.config._attn_implementation == implementation
    assert not any("observer" in name for m in model.modules() for name in vars(m))
    assert_close(watch.mass, expected(model, PROMPT, tokens, None), 1e-6)


def test_an_error_in_the_model_ends_the_watch():
    model = tiny_llama(window=128)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(Engine(model), PROMPT, None)
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
    assert not any("observer" in name for m in model.modules() for name in vars(m))


def test_a_model_extended_by_its_owner_is_watched_as_it_runs(tiny):
    """The engine runs it plain, and gives it back extended."""
    with extended(tiny, SETTINGS):
        tokens, watch = answer(Engine(tiny), PROMPT[:60], None)
    assert_close(watch.mass, expected(tiny, PROMPT[:60], tokens, None), 1e-6)


def test_models_that_can_not_be_watched_answer_without():
    model = zoo.build("gptj")
    prompt = zoo.tokens(LENGTH)[0].tolist()
    tokens, watch = answer(Engine(model), prompt, None)
    assert watch.mass is None
    settings = GenerationSettings(max_new_tokens=NEW, stop_token_ids=())
    assert list(Engine(model).generate(prompt, settings)) == tokens
