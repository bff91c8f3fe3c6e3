"""Whole documents against retrieval on a user's own questions: both answers, and their sources."""

from __future__ import annotations

import csv
import io
import json
import sys
import weakref

import pytest

from selfextend_rag.documents import Document, Location
from selfextend_rag.evals import Asked, Retrieval, compare, read_questions
from selfextend_rag.evals.comparison.passages import Index, Passage, passages_of, words_of
from selfextend_rag.evals.methods import MethodError
from selfextend_rag.evals.metrics.words import answer_f1, holds_answer
from selfextend_rag.evals.prose import king_james
from selfextend_rag.llm import LongContextLLM, Reading
from tests.evals.test_ways import Initials
from tests.tiny import byte_tokenizer, tiny_llama


def handbook():
    """Two documents of several windows of the bundled model, with a fact at the end of each."""
    facts = (
        "The access code of the workshop is 48213.",
        "The budget of the library is 6400 euros.",
    )
    made = []
    for number, fact in enumerate(facts):
        verses = king_james()[40_000 + number * 4000 :][:1800].splitlines()
        verses.insert(len(verses) * 2 // 3, fact)
        text = "\n".join(verses)
        place = Location(text.index(fact), "page 2")
        made.append(Document.from_text(
            text, title=f"Book {number}", locations=(Location(0, "page 1"), place)
        ))  # fmt: skip
    return made


QUESTIONS = (
    Asked("What is the access code of the workshop?", ("48213",)),
    Asked("What is the budget of the library?", ("6400",)),
)


@pytest.fixture(scope="module")
def bundled():
    return LongContextLLM.bundled()


@pytest.fixture(scope="module")
def found(bundled):
    return compare(bundled, handbook(), QUESTIONS, max_new_tokens=16)


@pytest.fixture(scope="module")
def tiny():
    return LongContextLLM(tiny_llama(window=400), byte_tokenizer(), max_group_size=4)


def test_the_whole_answer_is_that_of_a_reading_and_the_other_that_of_passages(bundled, found):
    reading = bundled.read(handbook(), max_new_tokens=16)
    assert found.plan.extended
    assert found.read_tokens == reading.plan.prompt_tokens
    for asked, each in zip(QUESTIONS, found.questions, strict=True):
        alone = reading.ask(asked.question)
        assert each.whole.text == alone.text
        assert [x.evidence.text for x in each.support] == [x.text for x in alone.evidence]
        assert each.whole.gold_nll == pytest.approx(
            sum(nlls := reading.answer_nll(asked.question, asked.answers[0])) / len(nlls), rel=1e-3
        )


def test_each_answer_is_judged_and_both_cost_what_was_run(found):
    for asked, each in zip(QUESTIONS, found.questions, strict=True):
        for reply in (each.whole, each.retrieved):
            assert reply.right == (asked.answers[0] in reply.text)
        assert each.whole.right
        assert each.whole.prompt_tokens == found.read_tokens + each.whole.run_tokens
        assert each.retrieved.run_tokens == each.retrieved.prompt_tokens
        assert each.retrieved.prompt_tokens + 16 <= found.window
        assert each.retrieved.read_seconds > 0
        assert each.whole.read_seconds == each.whole.search_seconds == 0
    assert found.read_seconds > 0


def test_what_retrieval_brought_is_named_by_document_and_place(found):
    documents = handbook()
    for number, each in enumerate(found.questions):
        best = each.passages[0]
        assert best.document == f"Book {number}"
        assert best.document_id == documents[number].id
        assert documents[number].text[best.start : best.end] == best.text
        assert each.asked.answers[0] in best.text
        assert best.place in ("page 2", "pages 1-2")
        assert len(each.passages) == 3
        assert each.answer_in_documents
        assert each.answer_in_passages


def test_evidence_is_looked_for_among_what_retrieval_brought(found, bundled):
    for each in found.questions:
        assert each.support[0].retrieved  # the sentence with the answer
        assert not each.missed
    asked = [Asked("What is the budget of the library?", ("6400",))]
    other = compare(bundled, handbook(), asked, retrieval=Retrieval("random"), max_new_tokens=16)
    (each,) = other.questions
    inside = [
        (x.start, x.end) for x in each.passages if x.document == "Book 1" and x.read
    ]  # chance draws the same passages each time
    evidence = each.support[0].evidence
    held = any(a <= evidence.start and evidence.end <= b for a, b in inside)
    assert each.support[0].retrieved == held
    assert each.missed != held


def test_documents_that_do_not_fit_are_refused_with_the_figures_and_retrieval_remains(tiny):
    text = "".join(f"Fact {i} is {i * i % 97}. " for i in range(300))
    found = compare(tiny, text, [Asked("What is fact 7?", ("49",))])
    assert f"exceeds the extended window of {tiny.planner.extended_window}" in found.refusal
    assert found.plan is None
    (each,) = found.questions
    assert each.whole is None
    assert each.retrieved.text
    assert found.recommendation.choice == "undecided"
    assert "can't be read whole" in found.recommendation.text
    assert found.refusal in found.recommendation.reasons[0].text
    assert found.refusal in " ".join(found.explain().split())
    assert json.loads(json.dumps(found.to_dict()))["whole"]["refusal"] == found.refusal


def test_a_worse_passage_is_never_read_in_place_of_a_better_one_that_does_not_fit(tiny):
    words = [f"w{i:03}" for i in range(90)]
    found = compare(tiny, " ".join(words), ["w042 w043?"], retrieval=Retrieval(passage_words=30))
    (each,) = found.questions
    assert [x.read for x in each.passages] == [True, True, False]
    assert "w042" in each.passages[0].text
    assert "fewer_passages" in [reason.name for reason in found.recommendation.reasons]
    one = compare(tiny, " ".join(words), ["w042?"], retrieval=Retrieval(passage_words=90))
    assert "exceeds the window of 400" in one.questions[0].refusal
    assert one.questions[0].whole is not None
    assert one.questions[0].retrieved is None
    assert "retrieval could answer no question" in one.recommendation.text


def test_by_default_passages_are_as_long_as_lets_all_of_them_fit(tiny):
    words = " ".join(f"word{i:04}" for i in range(150))
    narrow = LongContextLLM(tiny_llama(window=1100), byte_tokenizer())
    found = compare(narrow, words, ["word0042?"], max_new_tokens=2)
    assert [x.read for x in found.questions[0].passages] == [True] * 3
    assert 3 * 9 * found.retrieval.passage_words > 1100 / 2
    wide = LongContextLLM(tiny_llama(window=9000), byte_tokenizer())
    assert compare(wide, words, ["word0042?"], max_new_tokens=2).retrieval.passage_words == 200


def test_space_is_kept_for_a_right_answer_that_is_longer_than_answers(tiny):
    gold = "a right answer that is much longer than answers are"
    asked = [Asked("Which?", (gold,))]
    (each,) = compare(tiny, f"It is {gold}. " * 2, asked, max_new_tokens=2).questions
    for reply in (each.whole, each.retrieved):
        assert reply.new_tokens <= 2
        assert reply.gold_nll > 0


def test_a_chat_model_is_asked_both_ways_in_its_own_form():
    llm = LongContextLLM(tiny_llama(window=400), byte_tokenizer(chat=True))
    text = "".join(f"Fact {i} is {i * i % 97}. " for i in range(30))
    retrieval = Retrieval(passages=2, passage_words=4)
    (each,) = compare(llm, text, [Asked("Fact 7?", ("49",))], retrieval=retrieval,
                      max_new_tokens=4).questions  # fmt: skip
    reading = llm.read(text, max_new_tokens=4)
    assert each.whole.text == reading.ask("Fact 7?").text
    brought = llm.read("Fact 7 is 49. ", max_new_tokens=4)
    alone = compare(llm, text, ["Fact 7?"], retrieval=Retrieval("bm25", 1, 4), max_new_tokens=4)
    assert alone.questions[0].retrieved.text == brought.ask("Fact 7?").text
    assert each.retrieved.prompt_tokens < each.whole.prompt_tokens


def test_progress_names_what_is_done(tiny):
    seen = []
    compare(tiny, "The sky is blue. " * 20, ["Why?", "Who?"],
            progress=lambda *done: seen.append(done), max_new_tokens=2)  # fmt: skip
    names = [name for name, _, _ in seen]
    assert list(dict.fromkeys(names)) == [
        "reading", "answering from whole documents", "answering from passages"
    ]  # fmt: skip
    assert seen[-1][1:] == (2, 2)


def test_the_reading_is_gone_before_passages_are_read(tiny, monkeypatch):
    """Where memory holds one reading, a second next to it would be refused."""
    kept, alive = [], []
    read = LongContextLLM.read

    def watched(llm, *arguments, **options):
        alive.append(sum(each() is not None for each in kept))
        reading = read(llm, *arguments, **options)
        kept.append(weakref.ref(reading))
        return reading

    monkeypatch.setattr(LongContextLLM, "read", watched)
    compare(tiny, "The sky is blue. " * 20, ["Why?", "Who?"], max_new_tokens=2)
    assert alive == [0] * 4
    assert all(isinstance(each(), Reading | None) for each in kept)


def test_what_can_not_be_compared_is_refused(tiny):
    with pytest.raises(ValueError, match="there is no question"):
        compare(tiny, "x", [])
    with pytest.raises(ValueError, match="a question is empty"):
        compare(tiny, "x", [" "])
    with pytest.raises(ValueError, match="no word or number"):
        Asked("Why?", ("?",))
    with pytest.raises(ValueError, match="there are no documents"):
        compare(tiny, [], ["Why?"])
    twice = [Document.from_text(text, id="same") for text in ("One.", "Two.")]
    with pytest.raises(ValueError, match="same id"):
        compare(tiny, twice, ["Why?"])
    with pytest.raises(ValueError, match="max_new_tokens must be positive, got 0"):
        compare(tiny, "x", ["Why?"], max_new_tokens=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retriever": "bm52"}, "there is no retriever 'bm52'; there are bm25"),
        ({"passages": 0}, "passages must be positive, got 0"),
        ({"passage_words": 0}, "passage_words must be positive, got 0"),
        ({"retriever": "embeddings"}, "needs embeddings to take"),
        ({"embeddings": "x"}, "no other retriever takes any"),
        ({"retriever": "embeddings", "embeddings": 7}, "those of LangChain or LlamaIndex"),
    ],
)
def test_a_retriever_that_there_is_not_is_refused(options, message):
    with pytest.raises(MethodError, match=message):
        Retrieval(**options)


def test_without_its_library_bm25_is_refused_by_the_name_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MethodError, match=r'pip install "selfextend-rag\[evals\]"'):
        Retrieval()
    Retrieval("random")


def test_passages_are_embedded_once_for_all_questions(tiny):
    class Counted(Initials):
        calls = 0

        def embed_documents(self, texts):
            self.calls += 1
            return super().embed_documents(texts)

    embeddings = Counted()
    retrieval = Retrieval("embeddings", 1, 5, embeddings)
    text = "zzz zz zzzz. xxx xx xxxx. yyy yy yyyy."
    found = compare(tiny, text, ["zzz?", "yyy?"], retrieval=retrieval, max_new_tokens=2)
    assert embeddings.calls == 1
    assert [x.passages[0].text[0] for x in found.questions] == ["z", "y"]


def test_an_oracle_reads_what_holds_the_answer_and_refuses_a_question_without_one(tiny):
    text = "The sky is blue. The sea is green. The sun is red."
    asked = [Asked("What is green?", ("sea",)), "What else?", Asked("What is red?", ("fox",))]
    found = compare(tiny, text, asked, retrieval=Retrieval("oracle", 3, 4), max_new_tokens=2)
    assert [x.text for x in found.questions[0].passages] == ["The sea is green."]
    assert "says nothing of its place" in found.questions[1].refusal
    assert "no passage of the documents holds a right answer" in found.questions[2].refusal


def test_passages_are_the_text_and_no_longer_than_they_may_be():
    text = "  One two three. Four five.\n\nSix seven (eight nine.) Ten" + " eleven" * 20 + "\n"
    for words in (1, 2, 3, 5, 8, 100):
        found = passages_of([Document.from_text(text), Document.from_text("Other.")], words)
        parts = [text[x.start : x.end] for x in found if x.document == 0]
        assert "".join(parts) == text
        assert all(1 <= words_of(part) <= words for part in parts)
        assert [x for x in found if x.document == 1] == [Passage(1, 0, 6)]


def test_passages_end_where_a_paragraph_or_a_sentence_does():
    text = "One two three. Four five.\n\nSix seven. Eight nine ten eleven twelve"
    parts = [text[x.start : x.end] for x in passages_of([Document.from_text(text)], 7)]
    assert parts == ["One two three. Four five.\n\n", "Six seven. Eight nine ten eleven twelve"]
    parts = [text[x.start : x.end] for x in passages_of([Document.from_text(text)], 4)]
    assert parts[:2] == ["One two three. ", "Four five.\n\nSix seven. "]


def test_text_without_spaces_is_cut_by_characters():
    text = "天空是蓝色的。大海是绿色的。太阳是红色的。"
    parts = [text[x.start : x.end] for x in passages_of([Document.from_text(text)], 8)]
    assert parts == ["天空是蓝色的。", "大海是绿色的。", "太阳是红色的。"]


def test_passages_are_read_in_the_order_of_the_documents_under_their_headings():
    documents = [
        Document.from_text("a1 a2 a3 a4 a5 a6", title="A"),
        Document.from_text("b1 b2 b3 b4"),
    ]
    index = Index(documents, Retrieval("random"), 2)
    assert [index.text(x) for x in index.passages] == [
        "a1 a2 ",
        "a3 a4 ",
        "a5 a6",
        "b1 b2 ",
        "b3 b4",
    ]
    assert [(x.title, x.text) for x in index.read([3, 1, 0])] == [
        ("A", "a1 a2 a3 a4 "), ("Document 2", "b1 b2 ")
    ]  # fmt: skip
    assert [x.text for x in index.read([2, 0])] == ["# A\n\na1 a2\n\na5 a6"]
    alone = Index(documents[:1], Retrieval("random"), 2)
    assert [x.text for x in alone.read([0])] == ["a1 a2 "]


def test_the_page_shows_what_documents_and_models_say_and_runs_none_of_it(tiny, tmp_path):
    text = "<script>alert(1)</script> is blue. " * 3
    found = compare(tiny, text, ["<b>What?"], max_new_tokens=2)
    path = tmp_path / "report.html"
    found.save(path)
    page = path.read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;What?" in page
    assert found.recommendation.text in page
    assert "src=" not in page
    assert "href=" not in page
    assert list(tmp_path.iterdir()) == [path]
    assert found.recommendation.text in found._repr_html_()


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("It is 6,400 euros.", ["6400"], True),
        ("31 feet", ["31"], True),
        ("1310 feet", ["31"], False),
        ("3.5", ["35"], False),
        ("3.5", ["3.5"], True),
        ("-5 degrees", ["5"], False),
        ("\u22125 degrees", ["-5"], True),
        ("the Library", ["library"], True),
        ("The long answer is B.\n\nAs the text says.", ["b"], True),
        ("Option A", ["A"], True),
        ("nothing", ["A"], False),
        ("It takes 5km.", ["5 km"], True),
        ("room A12", ["12"], False),
        ("答案是東京。", ["東京"], True),
        ("", ["x"], False),
        ("one or two", ["three", "two"], True),
        ("two one", ["one two"], False),
    ],
)
def test_an_answer_is_right_that_holds_the_words_of_a_right_one(said, answers, right):
    assert holds_answer(said, answers) is right


def test_f1_is_that_of_the_best_answer():
    assert answer_f1("The red fox", ["a red fox", "cat"]) == 1
    assert answer_f1("red", ["red fox"]) == pytest.approx(2 / 3)
    assert answer_f1("blue", ["red"]) == 0


def test_questions_are_read_from_every_kind_of_file(tmp_path):
    rows = [("What, then?", "one", "two"), ('Who is "he"?', "", "")]
    table = io.StringIO()
    csv.writer(table).writerows([("id", "Question", "answer", "answer"), *((1, *x) for x in rows)])
    written = {
        "a.csv": "\ufeff" + table.getvalue(),
        "a.tsv": 'question\tanswer\tanswer\nWhat, then?\tone\ttwo\n"Who is ""he""?"\t\t\n\t\t\n',
        "a.jsonl": '{"question": "What, then?", "answers": ["one", "two"]}\n\n"Who is \\"he\\"?"\n',
        "a.json": json.dumps([{"question": rows[0][0], "answers": ["one", "two"]}, rows[1][0]]),
    }
    expected = [Asked("What, then?", ("one", "two")), Asked('Who is "he"?')]
    for name, text in written.items():
        (tmp_path / name).write_text(text, "utf-8")
        assert read_questions(tmp_path / name) == expected, name
    (tmp_path / "a.txt").write_text("What, then?\n\n Who?\n", "utf-8")
    assert read_questions(tmp_path / "a.txt") == [Asked("What, then?"), Asked("Who?")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "q,answer\nWhat?,x\n", "one column named question, and has q, answer"),
        ("a.csv", "question,answer\nWhat, then?,x\n", "line 2: 3 cells, and the head has 2"),
        ("a.csv", 'question\n"What?\n', "line 2: unexpected end of data"),
        ("a.csv", "question,answer\n,x\n", "line 2: a question is empty"),
        ("a.csv", "question,answer\n", "has no question"),
        ("a.jsonl", '{"question": "What?"}\n{"question": 1}\n', "number 2: expected an object"),
        ("a.jsonl", '{"question": "What?", "answer": 5}\n', "number 1: expected an object"),
        ("a.jsonl", '"What?"\n{\n', "line 2: no JSON"),
        ("a.json", "{}", "must hold a list of questions, got dict"),
        ("a.txt", " \n", "has no question"),
    ],
)
def test_a_file_of_questions_that_says_something_else_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't read the questions in"):
        read_questions(tmp_path / "none.csv")
    (tmp_path / "a.txt").write_bytes(b"Gr\xfc\xdfe?\n")
    with pytest.raises(ValueError, match="is not in UTF-8"):
        read_questions(tmp_path / "a.txt")
