"""What the integrations share: options, and whole documents that fit."""

from __future__ import annotations

import pytest

from selfextend_rag import ContextBudgetExceeded
from selfextend_rag.llm.frameworks import answer_options, fit_or_rank, open_llm, sort_options


def test_later_options_win_under_any_of_their_names():
    found = answer_options(
        {"max_new_tokens": 8, "temperature": 0.5, "seed": 1},
        {"max_tokens": 2, "temperature": None, "stop": "END", "tools": []},
        others=("tools",),
    )
    assert found == {
        "max_new_tokens": 2,
        "temperature": 0.5,
        "seed": 1,
        "also_stop": ("END",),
        "tools": [],
    }


def test_an_option_that_is_unknown_or_out_of_range_is_refused():
    with pytest.raises(TypeError, match=r"unknown option tempratur; a call takes .*temperature"):
        answer_options({"tempratur": 1})
    with pytest.raises(ValueError, match="temperature must be 0 or a positive number"):
        answer_options({"temperature": -1})
    with pytest.raises(TypeError, match="unknown option tools"):
        answer_options({"tools": []})


def test_stop_texts_of_frameworks_leave_the_end_of_the_form_in_force(llm, monkeypatch):
    """In the plain form that is a line end, for messages and readings, not for a text alone."""
    seen, answers = [], llm.engine.answers

    def watched(prompts, **options):
        seen.extend(prompt.options.stop for prompt in prompts)
        return answers(prompts, **options)

    monkeypatch.setattr(llm.engine, "answers", watched)
    options = {"also_stop": ("END",), "max_new_tokens": 1}
    llm.generate([{"role": "user", "content": "Who?"}], **options)
    llm.read("abc").ask("Who?", **options)
    llm.generate("abc", **options)
    llm.generate("abc", also_stop="END", stop="x", max_new_tokens=1)
    assert seen == [("END", "\n"), ("END", "\n"), ("END",), ("END", "x")]


def test_options_of_the_context_are_told_from_others():
    options = {"model": "m", "group_size": 4, "context_options": {"chunk_size": 9}}
    assert sort_options(options, ("model", "context_options")) == {
        "model": "m",
        "context_options": {"chunk_size": 9, "group_size": 4},
    }
    with pytest.raises(TypeError, match="unknown option foo; known are model and those of Long"):
        sort_options({"foo": 1}, ("model",))


def test_a_model_that_is_loaded_is_itself(llm):
    assert open_llm(llm, None, {"dtype": "auto", "device_map": None}, {}) is llm


def budget(sizes, space, frame=0, joined=0):
    """Documents of these sizes; each one that is joined takes more tokens than by itself."""

    def check(names):
        needed = frame + sum(sizes[name] for name in names) + joined * (len(names) - 1)
        if needed > space:
            raise ContextBudgetExceeded("too long", needed=needed, available=space)

    return {"check": check, "size": sizes.__getitem__, "rank": lambda names: sorted(names)[::-1]}


def test_what_fits_is_not_ranked():
    rules = budget({"a": 3, "b": 4}, space=9, frame=2)
    assert fit_or_rank("ab", **{**rules, "rank": None}) == (["a", "b"], [])


def test_the_most_relevant_that_fit_are_kept_also_behind_one_that_does_not():
    sizes = {"a": 2, "b": 9, "c": 4, "d": 3}
    assert fit_or_rank("abcd", **budget(sizes, space=9)) == (["d", "c", "a"], ["b"])
    assert fit_or_rank("abcd", **budget(sizes, space=11, frame=2)) == (["d", "c", "a"], ["b"])
    with pytest.raises(ContextBudgetExceeded):
        fit_or_rank("abcd", **{**budget(sizes, space=9), "rank": None})


def test_what_joined_takes_more_than_apart_is_left_out_from_its_end():
    sizes = {"a": 3, "b": 3, "c": 3}
    assert fit_or_rank("abc", **budget(sizes, space=9, joined=1)) == (["c", "b"], ["a"])


def test_if_not_one_document_fits_it_is_an_error():
    with pytest.raises(ContextBudgetExceeded):
        fit_or_rank("ab", **budget({"a": 9, "b": 9}, space=8))
