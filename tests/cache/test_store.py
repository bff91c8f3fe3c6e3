"""Reuse of earlier prompts: never another answer, never more memory than allowed."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfextend_rag.cache.cache import copied, shortest
from selfextend_rag.cache.identity import model_state
from selfextend_rag.cache.store import PrefixStore, SpillFolder, common_length
from selfextend_rag.engine import Engine, GenerationSettings
from selfextend_rag.errors import ReadingFileError
from selfextend_rag.positions import SelfExtend
from tests import zoo
from tests.tiny import tiny_llama

TEXT = [5 + (i * i * 7 + i) % 250 for i in range(400)]
GREEDY = GenerationSettings(max_new_tokens=10, stop_token_ids=())
LARGE = 1 << 30
EXTENDED = SelfExtend(4, 16)
MINE = {"weights": "mine"}


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_llama(), chunk_size=32)


def answer(engine, tokens, reuse=None, extension=EXTENDED, settings=GREEDY):
    generation = engine.generate(tokens, settings, reuse=reuse, settings=extension)
    return list(generation), generation.usage.cached_tokens


def spilling(folder, max_bytes=LARGE, of=MINE):
    return SpillFolder(folder, max_bytes, lambda: of)


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_the_common_length_is_that_of_a_loop(one, other):
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common_length(tuple(one), tuple(other)) == expected


@pytest.mark.parametrize("extension", [None, EXTENDED, SelfExtend(3, 10)], ids=str)
def test_a_conversation_pays_for_its_new_tokens_alone(engine, extension):
    """Its answers, which are in the next prompt, are not run again either."""
    store = PrefixStore(LARGE)
    prompt = TEXT[:60]
    for turn in range(5):
        fresh, _ = answer(engine, prompt, extension=extension)
        found, cached = answer(engine, prompt, store, extension)
        assert found == fresh
        if turn:
            # the last token of an answer is never run in the turn that made it
            assert len(prompt) - cached == 1 + 8
        prompt = [*prompt, *found, *TEXT[100 + 8 * turn : 108 + 8 * turn]]
    assert len(store) == 1


@pytest.mark.parametrize(
    "family",
    ["llama", "gemma3_text", "cwm", "lfm2", "falcon_h1"],
)
@pytest.mark.parametrize("extension", [None, EXTENDED], ids=str)
@pytest.mark.parametrize("same", [70, 40, 20])
def test_a_prompt_that_leaves_off_anywhere_gets_the_answer_of_a_fresh_run(family, extension, same):
    """Sliding layers that forgot, and recurrent states, are not reused where they can't be."""
    engine = Engine(zoo.build(family).double(), chunk_size=32)
    store = PrefixStore(LARGE)
    first = zoo.tokens(80, seed=1)[0].tolist()
    written, _ = answer(engine, first, store, extension)
    for prompt in (
        [*first[:same], *zoo.tokens(30, seed=2)[0].tolist()],
        [*first, *written, *zoo.tokens(9, seed=3)[0].tolist()],
        [*first, *written[:4], *zoo.tokens(9, seed=4)[0].tolist()],
        first,
    ):
        fresh, _ = answer(engine, prompt, extension=extension)
        assert answer(engine, prompt, store, extension)[0] == fresh


@pytest.mark.parametrize("family", ["gemma3_text", "cwm"])
def test_sliding_layers_serve_the_next_turn(family):
    """From the end of the prompt on they can be cut back, though their window is long full."""
    engine = Engine(zoo.build(family).double(), chunk_size=32)
    store = PrefixStore(LARGE)
    first = zoo.tokens(80)[0].tolist()
    written, _ = answer(engine, first, store)
    follow_up = [*first, *written[:5], *zoo.tokens(9, seed=4)[0].tolist()]
    fresh, _ = answer(engine, follow_up)
    assert answer(engine, follow_up, store) == (fresh, 85)


def test_recurrent_layers_serve_a_prompt_that_goes_on_from_all_that_was_read():
    engine = Engine(zoo.build("lfm2").double(), chunk_size=32)
    store = PrefixStore(LARGE)
    first = zoo.tokens(80)[0].tolist()
    written, _ = answer(engine, first, store)
    follow_up = [*first, *written, 9, 9, 9]
    fresh, _ = answer(engine, follow_up)
    assert answer(engine, follow_up, store) == (fresh, 89)


def test_keys_read_under_other_settings_are_not_reused(engine):
    store = PrefixStore(LARGE)
    for extension in (None, EXTENDED, SelfExtend(4, 20)):
        assert answer(engine, TEXT[:60], store, extension)[1] == 0
    for extension in (None, EXTENDED, SelfExtend(4, 20)):
        fresh, _ = answer(engine, TEXT[:60], extension=extension)
        assert answer(engine, TEXT[:60], store, extension) == (fresh, 59)


def test_an_entry_of_which_little_is_shared_is_copied_and_stays(engine):
    store = PrefixStore(LARGE)
    answer(engine, TEXT[:100], store)
    other = [*TEXT[:30], *TEXT[200:240]]
    assert answer(engine, other, store) == (answer(engine, other)[0], 30)
    assert len(store) == 2
    assert answer(engine, TEXT[:100], store) == (answer(engine, TEXT[:100])[0], 99)


def test_an_entry_of_which_most_is_shared_is_taken_over(engine):
    store = PrefixStore(LARGE)
    answer(engine, TEXT[:100], store)
    other = [*TEXT[:80], *TEXT[200:240]]
    assert answer(engine, other, store)[1] == 80
    assert len(store) == 1


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    budget=st.integers(0, 400_000),
    prompts=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 5), st.integers(1, 60)), max_size=8
    ),
)
def test_memory_stays_within_the_budget_and_answers_stay_the_same(budget, prompts):
    """Whatever comes in whatever order; real buffers are summed, free room included."""
    engine = Engine(_SHARED, chunk_size=32)
    store = PrefixStore(budget)
    for shared, other, more in prompts:
        prompt = [*TEXT[:shared], *TEXT[100 + 50 * other : 100 + 50 * other + more]]
        fresh, _ = answer(engine, prompt)
        assert answer(engine, prompt, store)[0] == fresh
        held = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for entry in store._entries
            for layer in entry.cache.layers
            for x in (layer.keys, layer.values, layer.grouped_keys._buffer)
            if x is not None
        }
        assert sum(held.values()) <= store.nbytes <= budget


_SHARED = tiny_llama()


def test_the_least_recently_used_entry_goes_first(engine):
    store = PrefixStore(LARGE)
    prompts = [TEXT[n : n + 60] for n in (0, 100, 200)]
    for prompt in prompts:
        answer(engine, prompt, store)
    one = store.nbytes // 3
    store = PrefixStore(2 * one + one // 2)
    for index in (0, 1, 0, 2):
        answer(engine, prompts[index], store)
    cached = [answer(engine, prompts[index], store)[1] for index in (0, 2, 1)]
    assert cached == [59, 59, 0]


def test_a_cancelled_answer_leaves_what_was_read(engine):
    store = PrefixStore(LARGE)
    with engine.generate(TEXT[:60], GREEDY, reuse=store, settings=EXTENDED) as generation:
        next(generation)
    assert answer(engine, TEXT[:60], store) == (answer(engine, TEXT[:60])[0], 59)
    stop = threading.Event()
    generation = engine.generate(
        TEXT[200:300], GREEDY, reuse=store, settings=EXTENDED, cancelled=stop,
        progress=lambda done, _: stop.set() if done == 64 else None,
    )  # fmt: skip
    assert list(generation) == []
    assert answer(engine, TEXT[200:300], store) == (answer(engine, TEXT[200:300])[0], 64)


def test_weights_that_change_during_an_answer_leave_nothing_behind():
    """What the old ones had read was kept under the state of the new ones, and gone on with."""
    model = tiny_llama()
    engine = Engine(model)
    store = PrefixStore(LARGE, state=lambda: model_state(model))
    with engine.generate(TEXT[:60], GREEDY, reuse=store, settings=EXTENDED) as generation:
        next(generation)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert len(store) == 0
    assert answer(engine, TEXT[:60], store) == (answer(engine, TEXT[:60])[0], 0)
    assert answer(engine, TEXT[:60], store)[1] == 59


def test_a_forward_that_fails_leaves_nothing_behind():
    model = tiny_llama()
    engine, store = Engine(model, chunk_size=32), PrefixStore(LARGE)
    answer(engine, TEXT[:60], store)

    def fail(*_):
        raise MemoryError

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        answer(engine, TEXT[:90], store)
    hook.remove()
    assert len(store) == 0
    assert answer(engine, TEXT[:90], store)[0] == answer(engine, TEXT[:90])[0]


def test_a_cache_can_be_cut_back_as_far_as_it_says():
    engine = Engine(zoo.build("gemma3_text").double())
    cache = engine.prefill(zoo.tokens(80)[0].tolist()).cache
    assert shortest(cache) == 80
    list(engine.generate([5], GREEDY))
    plain = Engine(tiny_llama()).prefill(TEXT[:80]).cache
    assert shortest(plain) == 0
    part = copied(plain, 30, capacity=50)
    assert torch.equal(part.layers[1].values, plain.layers[1].values[:, :, :30])
    assert part.nbytes < plain.nbytes


def test_evicted_entries_are_found_again_by_another_store(engine, tmp_path):
    fresh = [answer(engine, TEXT[n : n + 100])[0] for n in (0, 150)]
    store = PrefixStore(1, spilling(tmp_path))
    for n in (0, 150):
        answer(engine, TEXT[n : n + 100], store)
    assert store.nbytes == 0
    assert len(list(tmp_path.iterdir())) == 2
    later = PrefixStore(LARGE, spilling(tmp_path))
    assert [answer(engine, TEXT[n : n + 100], later) for n in (0, 150)] == [
        (tokens, 99) for tokens in fresh
    ]
    follow_up = [*TEXT[:100], *fresh[0], 7, 7]
    assert answer(engine, follow_up, later) == (answer(engine, follow_up)[0], 109)


def test_sliding_layers_are_found_again_on_disk(tmp_path):
    engine = Engine(zoo.build("gemma3_text").double(), chunk_size=32)
    first = zoo.tokens(90)[0].tolist()
    written, _ = answer(engine, first, PrefixStore(1, spilling(tmp_path)))
    follow_up = [*first, *written[:5], *zoo.tokens(9, seed=4)[0].tolist()]
    later = PrefixStore(LARGE, spilling(tmp_path))
    assert answer(engine, follow_up, later) == (answer(engine, follow_up)[0], 95)


def test_files_of_another_model_or_other_settings_are_left_alone(engine, tmp_path):
    answer(engine, TEXT[:100], PrefixStore(1, spilling(tmp_path)))
    other = PrefixStore(LARGE, spilling(tmp_path, of={"weights": "other"}))
    assert answer(engine, TEXT[:100], other)[1] == 0
    mine = PrefixStore(LARGE, spilling(tmp_path))
    assert answer(engine, TEXT[:100], mine, extension=SelfExtend(5, 20))[1] == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_stays_within_its_bound_and_the_oldest_goes(engine, tmp_path):
    answer(engine, TEXT[:100], PrefixStore(1, spilling(tmp_path)))
    (one,) = (path.stat().st_size for path in tmp_path.iterdir())
    store = PrefixStore(1, spilling(tmp_path, max_bytes=2 * one + one // 2))
    for n in (100, 200, 300):
        answer(engine, TEXT[n : n + 100], store)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2.5 * one
    later = PrefixStore(LARGE, spilling(tmp_path))
    cached = [answer(engine, TEXT[n : n + 100], later)[1] for n in (0, 100, 200, 300)]
    assert cached == [0, 0, 99, 99]


def test_a_damaged_file_is_reported_removed_and_done_without(engine, tmp_path, caplog):
    answer(engine, TEXT[:100], PrefixStore(1, spilling(tmp_path)))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = answer(engine, TEXT[:100], PrefixStore(LARGE, spilling(tmp_path)))
    assert found == (answer(engine, TEXT[:100])[0], 0)
    assert "is damaged or no saved reading: its data has another checksum" in caplog.text
    assert not path.exists()


def test_a_folder_that_can_t_be_written_is_reported_and_done_without(
    engine, tmp_path, caplog, monkeypatch
):
    spill = spilling(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with caplog.at_level(logging.WARNING):
        found = answer(engine, TEXT[:100], PrefixStore(1, spill))
    assert found == (answer(engine, TEXT[:100])[0], 0)
    assert "a prefix was not kept" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(ReadingFileError, match=r"can't use .*file as a folder: .*; name another"):
        spilling(tmp_path / "file")


def test_flushing_writes_what_is_in_memory(engine, tmp_path):
    store = PrefixStore(LARGE, spilling(tmp_path))
    answer(engine, TEXT[:100], store)
    assert list(tmp_path.iterdir()) == []
    store.flush()
    store.flush()
    assert len(list(tmp_path.iterdir())) == 1
    store.clear()
    assert store.nbytes == len(store) == 0
    assert answer(engine, TEXT[:100], store)[1] == 99


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: PrefixStore(-1), "prefix_cache_bytes must be 0 or more, got -1"),
        (lambda folder: spilling(folder, 0), "prefix_cache_dir_bytes must be positive, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(tmp_path, make, says):
    with pytest.raises(ValueError, match=says):
        make(tmp_path)
