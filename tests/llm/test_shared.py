"""Models by name share their weights while one of them lives."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfextend_rag import ModelLoadError, shared_llm
from selfextend_rag.bundled import FOLDER
from selfextend_rag.llm import library


def test_equal_options_give_the_same_model_and_others_the_same_weights():
    one, same = shared_llm("bundled"), shared_llm("bundled", {}, {})
    other = shared_llm("bundled", context={"max_group_size": 3})
    assert one is same
    assert other.model is one.model
    assert other.planner.max_group_size == 3
    assert shared_llm("bundled", {"dtype": "float64"}).model is not one.model


def test_threads_that_ask_at_once_load_the_weights_once():
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: shared_llm(FOLDER, context={"chunk_size": 99}), range(4)))
    assert len({id(llm.model) for llm in made}) == 1


def test_weights_are_given_up_with_the_last_model():
    gc.collect()  # what earlier tests left behind is not to go in between
    alone = shared_llm(FOLDER, context={"chunk_size": 78})
    count = sum(entry[2]() is not None for entry in library._live)
    del alone
    gc.collect()
    assert sum(entry[2]() is not None for entry in library._live) == count - 1


def test_a_name_that_leads_nowhere_is_refused():
    with pytest.raises(ModelLoadError, match="there is no such folder"):
        shared_llm("./nowhere")
