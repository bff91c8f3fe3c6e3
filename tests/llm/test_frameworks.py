"""What the integrations share: options, and whole documents that fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from selfextend_rag import ContextBudgetExceeded, LongContextLLM
from selfextend_rag.documents import Document, Location, Remark
from selfextend_rag.llm.frameworks import (
    answer_options,
    core_document,
    file_notes,
    fit_or_rank,
    joined,
    open_llm,
    sort_options,
)


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


FIELDS = ("model", "dtype", "device_map", "model_options", "max_new_tokens", "temperature", "stop")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (  # HuggingFaceLLM of LlamaIndex
            {
                "model_name": "m",
                "tokenizer_name": "m",
                "generate_kwargs": {"do_sample": False, "temperature": 0.7},
                "model_kwargs": {"torch_dtype": "float16", "attn_implementation": "eager"},
                "is_chat_model": True,
            },
            {
                "model": "m",
                "temperature": 0.0,
                "dtype": "float16",
                "model_options": {"attn_implementation": "eager"},
                "context_options": {"prompt_form": "chat"},
            },
        ),
        (  # HuggingFacePipeline.from_model_id of LangChain
            {
                "model_id": "m",
                "task": "text-generation",
                "device": -1,
                "pipeline_kwargs": {"max_new_tokens": 9, "do_sample": True, "num_beams": 1},
                "revision": "main",
                "model_options": {"subfolder": "x"},
            },
            {
                "model": "m",
                "device_map": "cpu",
                "max_new_tokens": 9,
                "temperature": 1.0,
                "model_options": {"subfolder": "x", "revision": "main"},
            },
        ),
        (
            {"repo_id": "m", "max_completion_tokens": 3, "stop_sequences": ["a"]},
            {"model": "m", "max_new_tokens": 3, "stop": ["a"]},
        ),
    ],
)
def test_options_of_other_classes_are_taken_under_our_names(given, taken):
    assert sort_options(given, FIELDS) == taken


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"context_window": 4096}, "the window follows from the model"),
        ({"model_name": "m", "tokenizer_name": "n"}, "give model= and tokenizer="),
        ({"tokenizer_kwargs": {"max_length": 9}}, "give model= and tokenizer="),
        ({"pipeline": object()}, "model=pipeline.model"),
        ({"model_kwargs": {"load_in_8bit": True}}, "quantization_config=BitsAndBytesConfig"),
        ({"pipeline_kwargs": {"max_length": 9}}, "max_tokens bounds the answer"),
        ({"generate_kwargs": {"num_beams": 4}}, "temperature=0"),
        ({"stopping_ids": [7]}, "stop_token_ids"),
        ({"model": "m", "model_name": "m"}, "model is given twice"),
        ({"max_tokens": 1, "generate_kwargs": {"max_new_tokens": 2}}, "max_new_tokens is given"),
        ({"model_kwargs": "x"}, "model_kwargs must be a dictionary"),
        ({"generate_kwargs": {"temprature": 1}}, "unknown option temprature; known are"),
    ],
)
def test_what_can_not_be_had_is_refused_with_what_to_use(given, instead):
    with pytest.raises(TypeError, match=instead):
        sort_options(given, FIELDS)


def test_an_option_that_a_class_has_under_its_own_name_is_left_alone():
    assert sort_options({"model_kwargs": 1, "n": 2}, ("model_kwargs", "n")) == {
        "model_kwargs": 1,
        "n": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "0"}, "temperature must be 0 or a positive number, got '0'"),
        ({"top_p": None}, r"top_p must be in \(0, 1\], got None"),
        ({"repetition_penalty": [1]}, r"repetition_penalty must be a positive number, got \[1\]"),
        ({"stop": 5}, r"stop must be non-empty strings, got \(5,\)"),
        ({"stop_token_ids": "a"}, r"stop_token_ids must be integers, got \('a',\)"),
        ({"tempratur": 1}, "unknown option tempratur; an answer takes also_stop, max_new_tokens"),
    ],
)
def test_a_value_of_another_type_is_named(llm, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        llm.generate("abc", **options)
    with pytest.raises((TypeError, ValueError), match=message):
        llm.read("abc").ask("Who?", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((name, "8") for name in ("max_group_size", "neighbor_window", "chunk_size", "kv_bits")),
        *(("trained_fraction", "1"), ("prefix_cache_bytes", "1"), ("prefix_cache_dir", 5)),
        *(("instruction", 5), ("template_options", [1])),
    ],
)
def test_an_option_of_a_model_that_is_of_another_type_is_named(llm, option, value):
    with pytest.raises(ValueError, match=rf"{option} must be .*, got {re.escape(repr(value))}"):
        LongContextLLM(llm.model, llm.tokenizer, **{option: value})


def test_what_a_model_was_made_with_may_be_said_again(llm):
    made = open_llm(llm.model, llm.tokenizer, {}, {"max_group_size": 4})
    assert open_llm(made, None, {"dtype": "auto"}, {"max_group_size": 4}) is made
    with pytest.raises(TypeError, match="max_group_size can't be changed"):
        open_llm(made, None, {}, {"max_group_size": 8})


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


LOST = Remark("pages without text", "page 3 has no text", "loss", 1, "page 3")
PAGES = Document.from_text(
    "one\n\ntwo", remarks=[LOST], locations=[Location(0, "page 1"), Location(5, "page 2")]
)


def test_what_is_known_of_a_file_comes_back_from_metadata():
    metadata = json.loads(json.dumps({"year": 1900, **file_notes(PAGES)}))
    again = core_document("one\r\n\r\ntwo", metadata, title="t", source="a.pdf", id="7")
    assert (again.title, again.source, again.id) == ("t", "a.pdf", "7")
    assert (again.remarks, again.locations) == (PAGES.remarks, PAGES.locations)
    assert again.metadata == {"year": 1900}


def test_a_part_of_a_text_is_not_located_as_the_whole_is():
    """A framework's splitter copies metadata to each part; its offsets are those of the whole."""
    part = core_document("two, and more that is long", file_notes(PAGES))
    assert (part.remarks, part.locations) == (PAGES.remarks, ())
    by_hand = {"locations": [{"start": 90, "name": "page 9"}]}
    assert core_document("short", by_hand).locations == ()


@pytest.mark.parametrize("value", ["Paris", ["Paris"], [{"name": "Paris"}], {"a": 1}, None, 3])
def test_metadata_of_others_that_has_these_names_stays_what_it_is(value):
    metadata = {"locations": value, "remarks": value}
    document = core_document("text", metadata)
    assert (document.remarks, document.locations) == ((), ())
    assert document.metadata == metadata


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([{"page": 0}, {"page": 1}], ["page 1", "page 2"]),
        ([{"page": 11}], ["page 12"]),
        ([{"page": n, "total_pages": 3, "page_label": "ix"} for n in (1, 2)], ["page 2", "page 3"]),
        ([{"page": n, "total_pages": 3} for n in (2, 3)], ["page 2", "page 3"]),
        ([{"page": 1}, {"page": 2}], ["page 1", "page 2"]),
        ([{"page_number": 4}, {"page_number": 6}], ["page 4", "page 6"]),
        ([{"page_label": "iv"}, {"page_label": "5"}], ["page iv", "page 5"]),
        ([{"page": "7"}], ["page 7"]),
    ],
    ids=str,
)
def test_pages_that_a_loader_gave_one_by_one_are_located(parts, names):
    text, metadata = joined([(f"text {n}", part) for n, part in enumerate(parts)], "\n\n")
    document = core_document(text, metadata)
    starts = [text.index(f"text {n}") for n in range(len(parts))]
    assert [document.location(start, start + 6) for start in starts] == names


def test_a_page_alone_is_located():
    assert core_document("text", {"page": 0}).location(0, 4) == "page 1"
    assert core_document("text", {"page_label": "2"}).location(0, 4) == "page 2"
    assert core_document("text", {"page": None, "page_label": " "}).location(0, 4) is None


def test_joined_parts_keep_their_remarks_and_places_and_what_they_agree_on():
    other = Document.from_text("three\r\nfour", locations=[Location(0, "sheet A", 3)])
    parts = [
        (each.text, {"source": "a", "n": n, **file_notes(each)})
        for n, each in enumerate((PAGES, other, replace(PAGES, locations=())))
    ]
    text, metadata = joined(parts[:2], "\n\n")
    whole = core_document(text, metadata)
    assert whole.text == "one\n\ntwo\n\nthree\nfour"
    assert whole.remarks == (LOST,)
    assert whole.metadata == {"source": "a"}
    at = whole.text.index("four")
    assert whole.location(at, at + 4) == "sheet A, row 4"
    assert whole.location(5, 8) == "page 2"
    # a part whose place is not known would count as that of the part before it
    assert core_document(*joined(parts, "\n\n")).locations == ()
    assert core_document(*joined(parts, "\n\n")).remarks == (LOST,)
    assert joined([("a", {"b": 1}), ("c", {"b": 1})], " ") == ("a c", {"b": 1})
