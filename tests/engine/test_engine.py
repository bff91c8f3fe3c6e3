"""The engine against transformers' own generate, and against itself in other ways of running."""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Lfm2Config

from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import CacheMismatchError, GenerationCancelled
from selfextend_rag.evidence.watch import AttentionWatch
from selfextend_rag.model import current_settings, extend, extended, is_extended
from selfextend_rag.positions import SelfExtend
from tests.tiny import tiny_llama

PROMPT = [5 + (i * i * 7 + i) % 250 for i in range(97)]
NO_END = ()
SETTINGS = [None, SelfExtend(4, 16), SelfExtend(3, 10)]
BY_SETTINGS = pytest.mark.parametrize("extension", SETTINGS, ids=str)


def greedy(tokens=12, **more):
    return GenerationSettings(max_new_tokens=tokens, stop_token_ids=NO_END, **more)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@BY_SETTINGS
def test_greedy_decoding_is_that_of_transformers(model, extension):
    ours = list(Engine(model).generate(PROMPT, greedy(), settings=extension))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    ids = torch.tensor([PROMPT])
    if extension is None:
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    else:
        with extended(model, extension):
            theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert ours == theirs[0, len(PROMPT) :].tolist()


@BY_SETTINGS
@pytest.mark.parametrize("chunk", [1, 7, 96, 97, 98])
def test_a_prompt_in_chunks_is_a_prompt_at_once(model, extension, chunk):
    whole = list(Engine(model).generate(PROMPT, greedy(), settings=extension))
    chunks = list(Engine(model, chunk_size=chunk).generate(PROMPT, greedy(), settings=extension))
    assert chunks == whole


@BY_SETTINGS
@pytest.mark.parametrize("read", [1, 40, 96])
def test_reading_then_asking_is_a_fresh_run_and_can_be_repeated(model, extension, read):
    engine = Engine(model, chunk_size=32)
    fresh = list(engine.generate(PROMPT, greedy(), settings=extension))
    prefix = engine.prefill(PROMPT[:read], settings=extension)
    other = [*PROMPT[:read], 9, 9, 9]
    for prompt, expected in [
        (PROMPT, fresh),
        (other, list(engine.generate(other, greedy(), settings=extension))),
        (PROMPT, fresh),
    ]:
        generation = engine.generate(prompt, greedy(), prefix=prefix)
        assert list(generation) == expected
        assert generation.usage.cached_tokens == read
        assert prefix.cache.get_seq_length() == read


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(
            vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            max_position_embeddings=64, pad_token_id=2, bos_token_id=0, eos_token_id=1,
        ),
        Lfm2Config(
            vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            layer_types=["conv", "full_attention", "conv"], pad_token_id=2, bos_token_id=0,
            eos_token_id=1,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
@pytest.mark.parametrize("extension", [None, SelfExtend(4, 16)], ids=str)
@pytest.mark.parametrize("read", [10, 60])
def test_layers_that_forget_are_put_back_for_the_next_question(config, extension, read):
    """Sliding layers drop old keys and convolutions keep a state: neither can simply be cut."""
    torch.manual_seed(0)
    engine = Engine(AutoModelForCausalLM.from_config(config).double().eval(), chunk_size=32)
    prefix = engine.prefill(PROMPT[:read], settings=extension)
    fresh = list(engine.generate(PROMPT, greedy(), settings=extension))
    for _ in range(2):
        assert list(engine.generate(PROMPT, greedy(), prefix=prefix)) == fresh


@BY_SETTINGS
def test_leaving_off_early_leaves_the_prefix_and_the_model_as_they_were(model, extension):
    engine = Engine(model, chunk_size=16)
    prefix = engine.prefill(PROMPT[:50], settings=extension)
    fresh = list(engine.generate(PROMPT, greedy(), prefix=prefix))
    with engine.generate(PROMPT, greedy(), prefix=prefix) as generation:
        first = next(generation)
    assert first == fresh[0]
    assert generation.finish_reason == "cancelled"
    assert prefix.cache.get_seq_length() == 50
    assert not is_extended(model)
    assert list(engine.generate(PROMPT, greedy(), prefix=prefix)) == fresh


def test_a_forward_that_fails_midway_leaves_the_prefix_usable(model):
    engine = Engine(model)
    prefix = engine.prefill(PROMPT[:50], settings=SelfExtend(4, 16))
    fresh = list(engine.generate(PROMPT, greedy(), prefix=prefix))

    def fail(*_):
        raise MemoryError("no space for the second layer")

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        list(engine.generate(PROMPT, greedy(), prefix=prefix))
    hook.remove()
    assert list(engine.generate(PROMPT, greedy(), prefix=prefix)) == fresh


def test_an_observer_that_fails_leaves_the_prefix_usable(model):
    """What it had been asked about stayed in the cache, behind the prefix."""
    engine = Engine(model)
    prefix = engine.prefill(PROMPT[:50], settings=SelfExtend(4, 16))
    fresh = list(engine.generate(PROMPT, greedy(), prefix=prefix))

    class Failing(AttentionWatch):
        def weigh(self, answer, *, ended):
            raise MemoryError("no space for the weights")

    with pytest.raises(MemoryError):
        list(engine.generate(PROMPT, greedy(), prefix=prefix, observer=Failing([len(PROMPT)])))
    assert prefix.cache.get_seq_length() == 50
    assert list(engine.generate(PROMPT, greedy(), prefix=prefix)) == fresh


@pytest.mark.parametrize("mine", [None, SelfExtend(2, 8)], ids=str)
@BY_SETTINGS
def test_the_model_keeps_the_settings_its_owner_gave_it(extension, mine):
    model = tiny_llama()
    expected = list(Engine(model).generate(PROMPT, greedy(3), settings=extension))
    if mine is not None:
        extend(model, mine)
    assert list(Engine(model).generate(PROMPT, greedy(3), settings=extension)) == expected
    now = current_settings(model)
    assert (now and now[0]) == mine


def test_only_the_last_position_s_logits_are_computed(model):
    lengths = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    list(Engine(model, chunk_size=40).generate(PROMPT, greedy(2)))
    hook.remove()
    assert lengths == [1, 1, 1, 1]  # three chunks, one decoded token


def test_progress_is_reported_after_each_chunk(model):
    engine = Engine(model, chunk_size=40)
    seen = []
    prefix = engine.prefill(PROMPT, progress=lambda *figures: seen.append(figures))
    assert seen == [(40, 97), (80, 97), (97, 97)]
    seen.clear()
    longer = [*PROMPT, *PROMPT]
    generation = engine.generate(
        longer, greedy(1), prefix=prefix, progress=lambda *figures: seen.append(figures)
    )
    list(generation)
    assert seen == [(137, 194), (177, 194), (194, 194)]


def test_usage_counts_tokens_and_times(model):
    engine = Engine(model)
    generation = engine.generate(PROMPT, greedy(5))
    tokens = list(generation)
    usage = generation.usage
    assert generation.finish_reason == "length"
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (97, 0, 5)
    assert usage.total_tokens == 102
    assert usage.prefill_seconds > 0
    assert usage.tokens_per_second == pytest.approx(4 / usage.decode_seconds)
    assert usage.to_dict()["tokens_per_second"] == usage.tokens_per_second

    stop_at = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    stopped = engine.generate(
        PROMPT, GenerationSettings(max_new_tokens=5, stop_token_ids=(tokens[stop_at],))
    )
    assert list(stopped) == tokens[:stop_at]
    assert stopped.finish_reason == "stop"
    assert stopped.usage.completion_tokens == stop_at


@pytest.mark.parametrize("several", [False, True])
def test_the_model_s_own_end_tokens_are_the_default(model, several):
    first = next(iter(Engine(model).generate(PROMPT, greedy(1))))
    named = [3, first] if several else first
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, named
    try:
        generation = Engine(model).generate(PROMPT, GenerationSettings(max_new_tokens=4))
        assert list(generation) == []
        assert generation.finish_reason == "stop"
    finally:
        model.generation_config.eos_token_id = before


def test_cancelling_a_prefill_raises_and_says_how_far_it_was(model):
    engine = Engine(model, chunk_size=10)
    cancel = threading.Event()
    with pytest.raises(GenerationCancelled) as caught:
        engine.prefill(PROMPT, progress=lambda done, _: done >= 30 and cancel.set(),
                       cancelled=cancel)  # fmt: skip
    assert (caught.value.done, caught.value.total) == (30, 97)
    assert len(engine.prefill(PROMPT)) == 97


def test_cancelling_an_answer_ends_it_without_an_error(model):
    engine = Engine(model, chunk_size=10)
    cancel = threading.Event()
    generation = engine.generate(PROMPT, greedy(50), cancelled=cancel)
    taken = []
    for token in generation:
        taken.append(token)
        if len(taken) == 3:
            cancel.set()
    assert len(taken) == 3
    assert generation.finish_reason == "cancelled"

    generation = engine.generate(PROMPT, greedy(50), cancelled=lambda: True)
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert generation.usage.prompt_tokens == 97


def test_a_request_that_waits_for_the_model_can_be_cancelled(model):
    engine = Engine(model)
    running = engine.generate(PROMPT, greedy())
    next(running)
    cancel = threading.Event()
    outcomes = []

    def wait():
        generation = Engine(model).generate(PROMPT, greedy(), cancelled=cancel)
        outcomes.append((list(generation), generation.finish_reason))
        with pytest.raises(GenerationCancelled):
            engine.prefill(PROMPT, cancelled=cancel)
        outcomes.append("refused")

    thread = threading.Thread(target=wait)
    thread.start()
    cancel.set()
    thread.join(timeout=30)
    running.close()
    assert outcomes == [([], "cancelled"), "refused"]


def test_a_thread_that_would_wait_for_itself_is_refused(model):
    engine = Engine(model)
    running = engine.generate(PROMPT, greedy())
    next(running)
    with pytest.raises(RuntimeError, match="unfinished generation"):
        engine.prefill(PROMPT)
    running.close()
    assert len(engine.prefill(PROMPT)) == 97


def test_an_abandoned_generation_frees_the_model_when_it_is_collected(model):
    engine = Engine(model)
    running = engine.generate(PROMPT, greedy(), settings=SelfExtend(4, 16))
    next(running)
    del running
    assert not is_extended(model)
    assert len(engine.prefill(PROMPT)) == 97


def test_threads_with_different_settings_do_not_disturb_each_other(model):
    expected = {s: list(Engine(model).generate(PROMPT, greedy(6), settings=s)) for s in SETTINGS}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(SETTINGS)
    found = {s: [] for s in SETTINGS}

    def work(extension):
        for _ in range(4):
            found[extension].append(
                list(Engine(model).generate(PROMPT, greedy(6), settings=extension))
            )

    threads = [threading.Thread(target=work, args=(s,)) for s in SETTINGS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: [tokens] * 4 for s, tokens in expected.items()}


def test_a_prompt_that_does_not_continue_the_prefix_is_refused_before_any_work(model):
    engine = Engine(model)
    prefix = engine.prefill(PROMPT[:20], settings=SelfExtend(4, 16))
    with pytest.raises(CacheMismatchError, match="does not begin with the 20 cached ones"):
        engine.generate([1, *PROMPT], greedy(), prefix=prefix)
    with pytest.raises(CacheMismatchError, match="does not begin"):
        engine.generate(PROMPT[:10], greedy(), prefix=prefix)
    with pytest.raises(CacheMismatchError, match="the last must be run"):
        engine.generate(PROMPT[:20], greedy(), prefix=prefix)
    with pytest.raises(CacheMismatchError, match="read them again"):
        engine.generate(PROMPT, greedy(), prefix=prefix, settings=SelfExtend(8, 16))


def test_what_can_not_run_is_refused(model):
    with pytest.raises(ValueError, match="chunk_size"):
        Engine(model, chunk_size=0)
    with pytest.raises(ValueError, match="no tokens"):
        Engine(model).generate([])
    with pytest.raises(ValueError, match="no tokens"):
        Engine(model).prefill([])
    training = tiny_llama().train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        Engine(training)


@BY_SETTINGS
def test_a_model_put_into_training_mode_answers_no_more(extension):
    """Its dropout would be heard in keys and answers, on plain runs without a word."""
    model = tiny_llama()
    engine = Engine(model)
    prefix = engine.prefill(PROMPT[:50], settings=extension)
    model.train()
    for prompt, known in ((PROMPT, prefix), (PROMPT, None)):
        with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\)"):
            list(engine.generate(prompt, greedy(), prefix=known, settings=extension))
    model.eval()
    assert list(engine.generate(PROMPT, greedy(), prefix=prefix, settings=extension))
