"""Answers over documents come with the passages they rest on."""

from __future__ import annotations

import json
import math
import threading

import pytest

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.documents import Remark
from selfextend_rag.evals.prose import king_james
from tests.documents.files import pdf_bytes, written
from tests.tiny import byte_tokenizer

FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}
SHORT = "The sky is blue. Grass is green. Snow is white."
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))
QUESTION = "What is fact 3?"
KEY = "The pass key is 48213. Remember it. 48213 is the pass key."


@pytest.fixture(scope="module")
def bundled():
    return LongContextLLM.bundled()


def with_key(length, place):
    """Prose of so many characters with the key at a sentence's end near a place."""
    text = king_james()[5000 : 5000 + length]
    at = text.index(". ", int(place * length)) + 2
    return f"{text[:at]}{KEY} {text[at:]}"


@pytest.mark.parametrize(("length", "place"), [(600, 0.5), (6000, 0.3), (12000, 0.7)])
def test_the_passage_with_the_fact_comes_first(bundled, length, place):
    """Inside the window, where the model runs plain, and at 4 and 8 times its length."""
    documents = [
        Document.from_text(king_james()[:200], title="Other"),
        Document.from_text(with_key(length, place), title="Key"),
    ]
    reading = bundled.read(documents)
    assert reading.plan.extended == (length > 1000)
    answer = reading.ask("What is the pass key?")
    assert answer.text.strip() == "48213"
    best = answer.evidence[0]
    assert best.document_id == documents[1].id
    assert best.title == "Key"
    assert best.text == documents[1].text[best.start : best.end]
    assert "48213" in best.text
    assert best.score > 0.01
    shares = answer.attention[1]  # its slices that touch the passage have what it has, or more
    size = len(documents[1].text) / len(shares)
    touching = shares[int(best.start / size) : math.ceil(best.end / size)]
    assert sum(touching) >= best.score - 1e-9
    assert [len(each) for each in answer.attention] == [200, 200]
    assert sum(map(sum, answer.attention)) == pytest.approx(1.0)


@pytest.mark.parametrize("chat", [False, True], ids=["plain form", "chat form"])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
def test_answers_are_the_same_with_and_without(llm, chat_llm, chat, text):
    reading = (chat_llm if chat else llm).read([text, SHORT[:20]])
    seen = reading.ask(QUESTION, **FREE)
    bare = reading.ask(QUESTION, evidence=False, **FREE)
    assert seen.text == bare.text
    assert seen.evidence
    assert bare.evidence == bare.attention == ()
    assert {p.document_id for p in seen.evidence} <= {d.id for d in reading.documents}
    assert reading.ask(QUESTION, **FREE).evidence == seen.evidence


def test_switched_off_it_touches_nothing(llm, monkeypatch):
    reading = llm.read(SHORT)
    monkeypatch.setattr("selfextend_rag.llm.answers.runner.AttentionWatch", None)
    assert reading.ask(QUESTION, evidence=False, **FREE).text
    assert llm.generate("x", **FREE).evidence == ()


def test_a_stream_s_answer_has_it(llm):
    reading = llm.read(LONG)
    with reading.stream(QUESTION, **FREE) as stream:
        list(stream)
    assert stream.answer.evidence == reading.ask(QUESTION, **FREE).evidence
    with reading.stream(QUESTION, evidence=False, **FREE) as stream:
        assert stream.answer.evidence == ()


def test_a_stop_text_ends_what_counts(llm):
    reading = llm.read(LONG)
    whole = reading.ask(QUESTION, **FREE).text
    stopped = reading.ask(QUESTION, **{**FREE, "stop": whole[4:6]})
    assert stopped.finish_reason == "stop"
    assert stopped.evidence


def test_it_is_found_again_for_a_reading_without_ranges(llm):
    """As one that was loaded from a file."""
    reading = llm.read(LONG)
    expected = reading.ask(QUESTION, **FREE).evidence
    reading._packed = None
    assert reading.ask(QUESTION, **FREE).evidence == expected


def test_a_template_s_date_moves_no_evidence(model, tmp_path, monkeypatch):
    """A reading loaded on another day was tokenized anew with that day's date, which is longer."""
    today = ["9 May"]
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.chat_template = "{{ day }}: {{ messages[0].content }}"
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer,
        "apply_chat_template",
        lambda *a, **more: render(*a, day=today[0], **more),
    )
    llm = LongContextLLM(model, tokenizer)
    reading = llm.read(SHORT)
    expected = reading.ask(QUESTION, **FREE).evidence
    reading.save(tmp_path / "a.kv")
    loaded = llm.load(tmp_path / "a.kv")
    today[0] = "10 May"
    assert expected
    assert loaded.ask(QUESTION, **FREE).evidence == expected


def test_cancelled_answers_have_what_they_said(llm):
    reading = llm.read(LONG)
    assert reading.ask(QUESTION, cancelled=lambda: True, **FREE).evidence == ()
    cancel = threading.Event()
    stream = reading.stream(QUESTION, cancelled=cancel, **FREE)
    next(stream)
    cancel.set()
    assert stream.answer.evidence


def test_it_is_json(llm):
    answer = llm.read(LONG).ask(QUESTION, **FREE)
    (first, *_) = json.loads(json.dumps(answer.to_dict()))["evidence"]
    fields = {"document_id", "start", "end", "score", "text", "title", "location"}
    assert set(first) == fields
    assert "attention" not in answer.to_dict()
    assert "attention" not in repr(answer)


def test_the_page_of_a_pdf_is_named_however_it_is_asked(bundled, tmp_path):
    filler = "And the earth was without form, and void; and darkness was upon the deep."
    pages = [f"{filler} {KEY}" if number == 3 else filler for number in range(1, 6)]
    document = Document.from_file(written(tmp_path, "key.pdf", pdf_bytes(*pages)))
    reading = bundled.read([document, "The sky is blue."])
    question = "What is the pass key?"
    reading.save(tmp_path / "key.kv")
    with reading.stream(question) as stream:
        list(stream)
    answers = [
        stream.answer,
        reading.ask(question),
        *reading.ask_batch([question, question], evidence=True),
        bundled.load(tmp_path / "key.kv").ask(question),
    ]
    assert [answer.text.strip() for answer in answers] == ["48213"] * 5
    assert [answer.evidence[0].location for answer in answers] == ["page 3"] * 5


def test_a_plan_names_the_documents_that_are_not_whole(llm):
    loss = Remark("pages without text", "page 2 has no text", "loss")
    note = Remark("scripts", "1 script was left out")
    scan = Document.from_text(SHORT, title="scan.pdf", remarks=[note, loss])
    reading = llm.read([scan, LONG])
    said = "scan.pdf: page 2 has no text (loss)"
    assert said in reading.plan.explain()
    assert said in reading.ask(QUESTION, **FREE).plan.explain()
    assert "script" not in reading.plan.explain()
    groups = llm.plan_groups([scan, LONG])
    assert [said in group.plan.explain() for group in groups] == [
        scan in g.documents for g in groups
    ]
