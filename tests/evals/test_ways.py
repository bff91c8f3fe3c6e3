"""Methods beside plain attention and SelfExtend: what each one reads, and how it is told apart."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from langchain_core.embeddings import Embeddings

from selfextend_rag.cache.identity import rotary_state
from selfextend_rag.evals.benchmarks import Item, Question, Source, SyntheticOptions, selected_tasks
from selfextend_rag.evals.methods import (
    METHODS,
    LoadedModel,
    MethodError,
    MethodOptions,
    methods_of,
)
from selfextend_rag.evals.methods.base import PASSAGE_WORDS
from selfextend_rag.evals.methods.retrieved import passages_of
from selfextend_rag.maps import MAPS
from tests.tiny import byte_tokenizer, tiny_llama

WHOLE = ("rerope", "leaky_rerope", "dual_chunk", "lampe", "adagrope", "ntk", "yarn")
RETRIEVED = ("bm25", "embeddings", "random", "oracle")


class Initials(Embeddings):
    """Counts of letters: enough to tell texts apart."""

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return [float(text.lower().count(x)) for x in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel("tiny", tiny_llama(window=64).eval(), byte_tokenizer())


@pytest.fixture(scope="module")
def wide():
    return LoadedModel("wide", tiny_llama(window=3000).eval(), byte_tokenizer())


def made(name, loaded, **options):
    return methods_of([name], loaded, MethodOptions(**options))[0]


def item(document, *questions):
    return Item("one", "Read. ", document, questions)


def asked(text, answer, number=0):
    gold = {"answers": [answer]}
    return Question(f"q{number}", text, gold, 8, answer=answer, evidence=(answer,))


LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))
BOTH = (asked("\nWhat is fact 3?", "9"), asked("\nAnd fact 5?", "25", 1))


def test_every_way_to_read_can_be_named():
    assert {"plain", "selfextend", "selfextend-published", *MAPS, *RETRIEVED, "ntk", "yarn"} <= {
        *METHODS
    }


@pytest.mark.parametrize("name", WHOLE)
def test_a_document_is_read_whole_and_the_settings_are_said(loaded, name):
    before = rotary_state(loaded.model)
    method = made(name, loaded)
    first = method.answers(item(LONG, *BOTH))
    plain = made("plain", loaded).answers(item(LONG, *BOTH))
    assert [x.prompt_tokens for x in first] == [x.prompt_tokens for x in plain]
    assert [x.text for x in first] == [x.text for x in method.answers(item(LONG, *BOTH))]
    assert all(x.settings.get("method", x.settings.get("rope")) == name for x in first)
    assert rotary_state(loaded.model) == before
    text = Item("text", "", LONG, predict_tokens=150)
    assert made("plain", loaded).predicted(text).nlls != method.predicted(text).nlls


@pytest.mark.parametrize("name", WHOLE)
def test_what_fits_the_window_is_read_as_plain_attention_does(loaded, name):
    short = item("Fact.", asked("\nWhich?", "x"))
    assert [x.text for x in made(name, loaded).answers(short)] == [
        x.text for x in made("plain", loaded).answers(short)
    ]


def test_published_settings_are_taken_by_how_many_windows_a_document_has(loaded):
    method = made("selfextend-published", loaded)
    found = [method.answers(item("x" * n, asked("?", "x")))[0].settings for n in (70, 150, 300)]
    assert found == [
        {"group_size": 3, "neighbor_window": 32},
        {"group_size": 5, "neighbor_window": 16},
        {"group_size": 15, "neighbor_window": 32},
    ]
    with pytest.raises(MethodError, match="settings of its own"):
        made("selfextend-published", loaded, group_size=4)


def test_no_two_methods_share_rows_of_results(loaded):
    """The identity is in the fingerprint of every row."""
    names = sorted({*METHODS} - {"embeddings"})
    identities = [repr(sorted(method.identity().items())) for method in
                  methods_of(names, loaded, MethodOptions())]  # fmt: skip
    assert len(set(identities)) == len(names)


def haystack(count):
    """Passages of their own subjects, one of which holds the answer."""
    words = ["stone", "river", "cloud", "bread", "paper", "metal"]
    parts = [" ".join([words[i % 6]] * PASSAGE_WORDS) for i in range(count)]
    parts[4] = " ".join(["zebra"] * (PASSAGE_WORDS - 2) + ["weighs", "412kg"])
    return " ".join(parts)


def test_passages_are_the_text():
    text = haystack(6) + " tail \n"
    passages = passages_of(text)
    assert "".join(passages) == text
    assert [len(x.split()) for x in passages] == [PASSAGE_WORDS] * 6 + [1]
    assert passages_of("") == []
    chinese = "人人生而自由，" * 100 + "end of it. " * 60
    passages = passages_of(chinese, 100)
    assert "".join(passages) == chinese
    assert [len(x) for x in passages[:6]] == [100] * 6


@pytest.mark.parametrize("name", ["bm25", "embeddings", "oracle"])
def test_retrieval_reads_the_piece_that_holds_the_answer_within_the_window(wide, name):
    method = made(name, wide, embeddings=Initials())
    document = haystack(6)
    (answer,) = method.answers(item(document, asked("\nzebra zebra?", "412kg")))
    assert 4 in answer.settings["passages"]
    assert answer.settings["of_passages"] == 6
    assert answer.settings["seen_tokens"] == answer.prompt_tokens <= 3000 - 8
    if name == "oracle":
        assert answer.settings["passages"] == [4]
    else:  # as many more as fit
        assert len(answer.settings["passages"]) == 2


def test_a_scale_leaves_space_for_right_answers_that_are_measured(loaded):
    """It was for the answer alone, so that longer right ones were beyond the last position."""
    long = replace(asked("\nWhat?", "x"), answer="a right answer of more than eight tokens")
    (answer,) = made("ntk", loaded, likelihood=True).answers(item(LONG, long))
    seen = answer.prompt_tokens + len(answer.gold_nlls)
    assert len(answer.gold_nlls) > 8
    assert answer.settings["factor"] * loaded.window >= seen


def test_a_library_that_ranking_lacks_is_named_before_anything_runs(wide, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MethodError, match=r"selfextend-rag\[evals\]"):
        made("bm25", wide)


def test_finding_and_reading_passages_is_in_the_time_of_each_question(wide, monkeypatch):
    """The report takes one reading a document, which is all that whole documents need."""
    clock = SimpleNamespace(perf_counter=iter([0.0, 1000.0, 0.0, 2000.0]).__next__)
    monkeypatch.setattr("selfextend_rag.evals.methods.retrieved.time", clock)
    questions = asked("\nzebra?", "x"), asked("?", "x", 1)
    found = made("bm25", wide).answers(item(haystack(6), *questions))
    assert [answer.read_seconds for answer in found] == [0, 0]
    assert [answer.seconds // 1000 for answer in found] == [1, 2]


def test_so_many_passages_and_no_more(wide):
    method = made("bm25", wide, most_passages=1)
    (answer,) = method.answers(item(haystack(6), asked("\nzebra?", "412kg")))
    assert answer.settings["passages"] == [4]


def test_shorter_passages_let_more_of_them_fit(wide):
    document = haystack(6)
    question = asked("\nzebra zebra?", "412kg")
    answers = [
        made("bm25", wide, most_passages=3, passage_words=words).answers(item(document, question))[
            0
        ]
        for words in (PASSAGE_WORDS, 50)
    ]
    assert [len(x.settings["passages"]) for x in answers] == [2, 3]
    assert [x.settings["of_passages"] for x in answers] == [6, 24]


def test_wrong_answers_are_as_likely_as_if_they_were_the_right_ones(wide):
    question = replace(asked("\nWhat is fact 3?", "9"), others=("25", "64"))
    (found,) = made("plain", wide, likelihood=True).answers(item(LONG, question))
    alone = [
        made("plain", wide, likelihood=True)
        .answers(item(LONG, replace(question, answer=x, others=())))[0]
        .gold_nlls
        for x in ("9", "25", "64")
    ]
    assert [found.gold_nlls, *found.other_nlls] == [pytest.approx(x) for x in alone]
    (without,) = made("plain", wide).answers(item(LONG, question))
    assert without.other_nlls == ()


def test_chance_is_the_same_for_the_same_question_and_not_for_another(wide):
    documents = item(haystack(12), asked("\nA?", "x"), asked("\nB?", "x", 1), asked("\nC?", "x", 2))
    one, other = (made("random", wide).answers(documents) for _ in range(2))
    chosen = [answer.settings["passages"] for answer in one]
    assert chosen == [answer.settings["passages"] for answer in other]
    assert len({tuple(x) for x in chosen}) > 1


def test_an_answer_across_a_border_takes_both_passages(wide):
    words = ["word"] * (3 * PASSAGE_WORDS)
    words[PASSAGE_WORDS - 1 : PASSAGE_WORDS + 1] = ["Blue", "Heron"]
    (answer,) = made("oracle", wide).answers(item(" ".join(words), asked("\nWho?", "blue heron")))
    assert answer.settings["passages"] == [0, 1]


def leval_item(tmp_path, name, instruction, output, evaluation):
    record = {
        "input": haystack(6).replace("stone", "rouge"),
        "instructions": [instruction],
        "outputs": [output],
        "evaluation": evaluation,
    }
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
    ((task,), _) = selected_tasks([f"leval/{name}"], Source(tmp_path), SyntheticOptions())
    (found,) = task.items(None)
    return found


def test_the_oracle_looks_for_the_answer_and_not_for_the_name_of_its_metric(wide, tmp_path):
    """It took every text in the gold for an answer, "rouge" among them."""
    of = leval_item(tmp_path, "news_summ", "What weighs it?", "weighs 412kg", "rouge")
    of = replace(of, questions=(replace(of.questions[0], max_new_tokens=8),))
    (answer,) = made("oracle", wide).answers(of)
    assert answer.settings["passages"] == [4]


def test_the_oracle_does_not_look_for_letters_nor_within_words(wide, tmp_path):
    choice = leval_item(tmp_path, "tpo", "Which? (A) x (B) y", "A", "exam")
    with pytest.raises(MethodError, match="says nothing of its place"):
        made("oracle", wide).answers(choice)
    document = haystack(6).replace("stone", "1412kg").replace("river", "412kgs")
    (answer,) = made("oracle", wide).answers(item(document, asked("\nWho?", "412kg")))
    assert answer.settings["passages"] == [4]


def test_retrieval_looks_for_the_question_and_not_for_the_prompt_around_it(wide):
    """A passage about documents and answers was the best for every question."""
    frame = "Answer from the documents in as few words as you can."
    about = " ".join((frame.split() * PASSAGE_WORDS)[:PASSAGE_WORDS])
    document = f"{about} {haystack(6)}"
    text = f"\n{frame}\nQuestion: zebra?"
    bare = replace(asked(text, "412kg"), query="zebra?")
    method = made("bm25", wide, most_passages=1)
    assert method.answers(item(document, bare))[0].settings["passages"] == [5]
    by_all = method.answers(item(document, asked(text, "412kg")))
    assert by_all[0].settings["passages"] == [0]


def test_what_can_t_be_done_is_said(loaded, wide):
    with pytest.raises(MethodError, match="no passage"):
        made("oracle", wide).answers(item(haystack(5), asked("\nWho?", "nobody")))
    with pytest.raises(MethodError, match="exceed the window"):
        made("random", loaded).answers(item(haystack(5), asked("\nWho?", "nobody")))
    with pytest.raises(MethodError, match="a text to predict"):
        made("bm25", wide).predicted(Item("text", "", LONG, predict_tokens=50))
    with pytest.raises(MethodError, match="embeddings="):
        made("embeddings", wide)
    with pytest.raises(MethodError, match="most_passages must be positive"):
        made("bm25", wide, most_passages=0)
    with pytest.raises(MethodError, match="got list"):
        made("embeddings", wide, embeddings=[1])
