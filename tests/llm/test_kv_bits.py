"""Readings and prompts whose keys and values are kept in few bits: the same answer on every way."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from selfextend_rag import CacheMismatchError, Document, LongContextLLM
from selfextend_rag.cache import QuantisedLayer
from selfextend_rag.engine import decode
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.evals.prose import king_james
from tests import zoo
from tests.tiny import byte_tokenizer, tiny_llama

FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}
SHORT = "The sky is blue."
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))
QUESTION = "What is fact 3?"
KEY = "The pass key is 48213. Remember it. 48213 is the pass key."
BITS = [8, 4]


@pytest.fixture(scope="module", params=BITS)
def llm(request):
    model = tiny_llama(window=128)
    return LongContextLLM(model, byte_tokenizer(), chunk_size=50, kv_bits=request.param)


@pytest.fixture(scope="module", params=BITS)
def bundled(request):
    return LongContextLLM.bundled(kv_bits=request.param)


def other(llm, kv_bits, **options):
    return LongContextLLM(llm.model, llm.tokenizer, chunk_size=50, kv_bits=kv_bits, **options)


def with_key(length, place):
    text = king_james()[5000 : 5000 + length]
    at = text.index(". ", int(place * length)) + 2
    return f"{text[:at]}{KEY} {text[at:]}"


@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
def test_asked_twice_in_other_chunks_or_from_disk_a_reading_answers_the_same(llm, text, tmp_path):
    reading = llm.read(text)
    first = reading.ask(QUESTION, **FREE).text
    assert reading.ask("Why?", **FREE).text is not None
    assert reading.ask(QUESTION, **FREE).text == first
    reading.save(tmp_path / "kept")
    loaded = llm.load(tmp_path / "kept")
    assert loaded.ask(QUESTION, **FREE).text == first
    assert loaded.nbytes <= reading.nbytes
    assert all(isinstance(x, QuantisedLayer) for x in loaded._prefix.cache.layers)
    chunked = LongContextLLM(llm.model, llm.tokenizer, chunk_size=7, kv_bits=llm.engine.kv_bits)
    assert chunked.read(text).ask(QUESTION, **FREE).text == first


def test_the_file_holds_what_is_rounded_and_is_as_small(llm, tmp_path):
    text = LONG + "x" * 400
    sizes = []
    for kept in (other(llm, None), llm):
        kept.read(text).save(tmp_path / "kept")
        sizes.append((tmp_path / "kept").stat().st_size)
    assert sizes[1] < sizes[0] * 0.6


def test_a_reading_of_other_bits_is_refused_with_both_named(llm, tmp_path):
    llm.read(LONG).save(tmp_path / "kept")
    for bits, here in ((None, "full precision"), (12 - llm.engine.kv_bits, "bits")):
        with pytest.raises(CacheMismatchError, match="keys and values in ") as refused:
            other(llm, bits).load(tmp_path / "kept")
        assert f"in {llm.engine.kv_bits} bits there" in str(refused.value)
        assert f"{here} here" in str(refused.value)
    other(llm, None).read(LONG).save(tmp_path / "full")
    with pytest.raises(CacheMismatchError, match=r"in full precision there, in \d bits here"):
        llm.load(tmp_path / "full")


def test_a_prompt_is_answered_the_same_with_reuse_and_after_an_eviction(llm, tmp_path):
    prompts = [LONG, f"{LONG}And so on", f"Other{LONG}", f"{LONG}And so forth"]
    fresh = other(llm, llm.engine.kv_bits, prefix_cache_bytes=0)
    expected = [fresh.generate(prompt, **FREE).text for prompt in prompts]
    reusing = other(llm, llm.engine.kv_bits)
    answers = [reusing.generate(prompt, **FREE) for prompt in prompts]
    assert [answer.text for answer in answers] == expected
    assert answers[1].usage.cached_tokens > 200
    assert answers[3].usage.cached_tokens > 200
    options = {"prefix_cache_bytes": 1, "prefix_cache_dir": tmp_path}
    evicting = other(llm, llm.engine.kv_bits, **options)
    answers = [evicting.generate(prompt, **FREE) for prompt in prompts]
    assert [answer.text for answer in answers] == expected
    assert answers[3].usage.cached_tokens > 200
    full = other(llm, None, **options)  # the folder has no keys of full precision
    assert full.generate(LONG, **FREE).usage.cached_tokens == 0


@pytest.mark.parametrize(("length", "place"), [(600, 0.5), (6000, 0.3), (12000, 0.7)])
def test_a_fact_is_found_and_its_passage_comes_first(bundled, length, place):
    documents = [Document.from_text(with_key(length, place), title="Key")]
    reading = bundled.read(documents)
    assert reading.plan.extended == (length > 1000)
    answer = reading.ask("What is the pass key?")
    assert answer.text.strip() == "48213"
    assert "48213" in answer.evidence[0].text
    assert reading.ask("What is the pass key?", evidence=False).text == answer.text


def test_evidence_holds_no_keys_in_full_precision(bundled, monkeypatch):
    """Keys made anew for each layer must not pile up until the answer is weighed."""
    from selfextend_rag.evidence import watch

    seen = []
    weigh = watch._WatchedLayer.weigh

    def looked_at(layer, tokens):
        seen.append(len(layer._keys))
        weigh(layer, tokens)

    monkeypatch.setattr(watch._WatchedLayer, "weigh", looked_at)
    assert bundled.read(with_key(6000, 0.3)).ask("What is the pass key?").evidence
    assert seen
    assert set(seen) == {0}


def test_the_plan_is_the_reading_s_own_bytes_and_says_the_bits(llm):
    reading = llm.read(LONG)
    assert reading.plan.memory.kv_bits == llm.engine.kv_bits
    assert reading.nbytes == reading.plan.memory.kv_cache_bytes
    assert reading.plan.memory.grouped_keys_bytes == 0
    assert f"in {llm.engine.kv_bits} bits" in reading.plan.explain()


@pytest.mark.parametrize("bits", [3, "8"])
def test_other_numbers_of_bits_are_refused(llm, bits):
    with pytest.raises(ValueError, match="kv_bits must be 8, 4 or None"):
        other(llm, bits)


def test_a_model_without_layers_to_round_is_refused():
    with pytest.raises(UnsupportedModelError, match="kv_bits=8 would change nothing"):
        LongContextLLM(zoo.build("mistral"), byte_tokenizer(), kv_bits=8)


QUESTIONS = [QUESTION, "Why?", "What is fact 7, and what is fact 8?"]


@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
def test_a_batch_is_answered_together_and_as_alone_with_its_evidence(llm, text, monkeypatch):
    """Rows were answered one by one: their rounded keys could not be put behind the shared ones."""
    sizes, real = [], decode.step
    monkeypatch.setattr(decode, "step", lambda *given: sizes.append(len(given[1])) or real(*given))
    model = copy.deepcopy(llm.model).double()  # in which a batch rounds as a single row does
    exact = LongContextLLM(model, llm.tokenizer, chunk_size=50, kv_bits=llm.engine.kv_bits)
    reading = exact.read(text, question_reserve=64)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert len({answer.text for answer in alone}) == len(QUESTIONS)
    together = reading.ask_batch(QUESTIONS, evidence=True, **FREE)
    assert max(sizes) == len(QUESTIONS)
    assert [a.text for a in reading.ask_batch(QUESTIONS, **FREE)] == [a.text for a in alone]
    for answer, own in zip(together, alone, strict=True):
        assert answer.text == own.text
        assert answer.evidence
        assert [replace(e, score=0) for e in answer.evidence] == [
            replace(e, score=0) for e in own.evidence
        ]
        scores = [e.score for e in own.evidence]
        assert [e.score for e in answer.evidence] == pytest.approx(scores, rel=1e-9)
    again = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert [(a.text, a.evidence) for a in again] == [(a.text, a.evidence) for a in alone]


def test_the_bundled_model_answers_batches_in_few_bits_alike(bundled):
    reading = bundled.read([Document.from_text(with_key(6000, 0.3), title="Key")])
    questions = ["What is the pass key?", "Who is named first?", "What is the pass key?"]
    alone = [reading.ask(question) for question in questions]
    for evidence in (False, True):
        answers = reading.ask_batch(questions, evidence=evidence)
        assert [answer.text for answer in answers] == [answer.text for answer in alone]
        assert answers[0].text.strip() == "48213"
    assert "48213" in answers[2].evidence[0].text
