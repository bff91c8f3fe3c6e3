"""Models by name share their weights while one of them lives."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfextend_rag import KeptReadings, ModelLoadError, shared_llm
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
    count = len(library._opened)
    del alone
    gc.collect()
    assert len(library._opened) == count - 1


def test_copies_and_pickles_of_a_model_by_name_are_that_model():
    made = shared_llm("bundled", context={"max_group_size": 4})
    for again in (copy.copy(made), copy.deepcopy([made])[0], pickle.loads(pickle.dumps(made))):
        assert again is made
    kept = KeptReadings(made, max_bytes=9)
    again = pickle.loads(pickle.dumps(kept))
    assert (again.llm, again.max_bytes, again.nbytes) == (made, 9, 0)


def test_a_model_by_name_reaches_another_process_by_its_name():
    """Weights of gigabytes would be written, if they could be at all."""
    made = shared_llm("bundled", {"dtype": "float64"}, {"max_group_size": 4})
    assert len(pickle.dumps(made)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_figures, (made,)) == ("torch.float64", 4)


def _figures(llm):
    return str(llm.model.dtype), llm.planner.max_group_size


def test_what_holds_weights_or_keys_of_its_own_can_be_copied_and_not_pickled(llm):
    reading = llm.read("abc")
    assert copy.deepcopy(llm) is llm
    assert copy.deepcopy({"kept": reading})["kept"] is reading
    with pytest.raises(TypeError, match=r"handed over loaded, so it can't be pickled.*name it"):
        pickle.dumps(llm)
    with pytest.raises(TypeError, match=r"with Reading.save"):
        pickle.dumps(reading)


def test_a_name_that_leads_nowhere_is_refused():
    with pytest.raises(ModelLoadError, match="there is no such folder"):
        shared_llm("./nowhere")
