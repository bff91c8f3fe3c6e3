"""Several questions at a time: each answer is that of ``ask``, and the documents are held once."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, Gemma3TextConfig, Lfm2Config

from selfextend_rag.engine import decode
from selfextend_rag.engine.sampling import Sampler
from selfextend_rag.errors import ConstraintError, ContextBudgetExceeded
from selfextend_rag.llm import KeptReadings, LongContextLLM
from selfextend_rag.llm.memory import memory_of_model
from selfextend_rag.planning import MemoryBudget
from tests.llm.conftest import WINDOW
from tests.tiny import byte_tokenizer, tiny_llama

GENESIS = Path(__file__).parents[2] / "examples/documents/genesis.txt"
SHORT = "Ann is 31. Bob is 27. "
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(20))
FREE = {"stop": (), "stop_token_ids": ()}
QUESTIONS = [
    "Who?",
    "How old is Ann, as it says at first?",
    "Bob?",
    "What is fact 7, and what is fact 8?",
    "Why",
]


def same(answers, alone):
    """Equal in all but the seconds, and the memory that was free when the plan was made."""

    def of(answer):
        usage = answer.usage
        counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return (answer.text, answer.finish_reason, replace(answer.plan, memory=None), counts)

    return [of(a) for a in answers] == [of(a) for a in alone]


@pytest.mark.parametrize("form", ["plain form", "chat form"])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
@pytest.mark.parametrize("at_once", [2, 16])
def test_a_batch_answers_as_one_question_after_the_other(llm, chat_llm, form, text, at_once):
    llm = llm if form == "plain form" else chat_llm
    reading = llm.read(text, max_new_tokens=20, question_reserve=64)
    assert reading.plan.extended is (text is LONG)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert len({answer.text for answer in alone}) == len(QUESTIONS)
    assert same(reading.ask_batch(QUESTIONS, at_once=at_once, **FREE), alone)
    assert same([reading.ask(question, **FREE) for question in QUESTIONS], alone)


def other(family):
    """A model that can't answer several questions at a time."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": WINDOW, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    if family == "recurrent":
        kinds = ["conv", "full_attention"]
        config = Lfm2Config(num_key_value_heads=2, layer_types=kinds, **sizes)
    else:
        config = DeepseekV2Config(
            num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=2, **sizes,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
@pytest.mark.parametrize("family", ["recurrent", "latent"])
def test_models_that_can_not_answer_one_question_after_the_other(family, text, monkeypatch):
    monkeypatch.setattr(decode, "step", None)
    llm = LongContextLLM(other(family), byte_tokenizer(), pretraining_window=WINDOW, chunk_size=50)
    reading = llm.read(text, max_new_tokens=8, question_reserve=64)
    assert reading.plan.extended is (text is LONG)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert same(reading.ask_batch(QUESTIONS, **FREE), alone)


def test_what_differs_by_question_is_what_ask_would_take(llm):
    reading = llm.read(LONG, max_new_tokens=25, question_reserve=110)
    free = reading.ask("Who?", **FREE).text
    schema = {"type": "object", "properties": {"a": {"enum": [True, False]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    questions = [
        {"question": "Who?", "stop": free[5:8]},
        {"question": "Who?"},
        {"question": "Bob?", "max_new_tokens": 1},
        {"question": "Bob?", "temperature": 2.0, "seed": 7},
        {"question": "Bob?", "temperature": 2.0, "seed": 8},
        {"question": "Bob?", "repetition_penalty": 1.5},
        {"question": "Bob?", "json_schema": schema, "stop_token_ids": None},
        {"question": "Who?", "stop_token_ids": tuple(range(5, 100))},
    ]
    alone = [reading.ask(**{**FREE, **one}) for one in questions]
    assert same(reading.ask_batch(questions, **FREE), alone)
    assert alone[0].finish_reason == "stop"
    assert alone[0].text == free[: free.index(free[5:8])]
    assert alone[1].text == free
    assert alone[1].finish_reason == "length"
    assert alone[3].text != alone[4].text
    assert json.loads(alone[6].text)["a"] in (True, False)


def test_the_bundled_model_finds_the_key_in_every_row():
    llm = LongContextLLM.bundled()
    fact = "The pass key is 48213. Remember it. 48213 is the pass key.\n\n"
    lines = GENESIS.read_text("utf-8").splitlines(keepends=True)[:60]
    reading = llm.read("".join([*lines[:30], fact, *lines[30:]]))
    assert reading.plan.extended
    questions = ["What is the pass key?"] * 2 + ["What is the name of the second river?"]
    answers = reading.ask_batch(questions)
    assert [answer.text for answer in answers[:2]] == ["48213", "48213"]
    assert same(answers, [reading.ask(question) for question in questions])


def test_a_reading_from_disk_answers_batches_alike(llm, tmp_path):
    reading = llm.read(LONG, max_new_tokens=20, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    reading.save(tmp_path / "reading.kv")
    loaded = llm.load(tmp_path / "reading.kv")
    held = loaded.nbytes
    assert same(loaded.ask_batch(QUESTIONS, **FREE), alone)
    assert loaded.nbytes == held + loaded.plan.memory.grouped_keys_bytes
    assert same([loaded.ask(question, **FREE) for question in QUESTIONS], alone)


def test_a_sliding_model_from_disk_answers_batches_alike(tmp_path):
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=24,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval()
    llm = LongContextLLM(model, byte_tokenizer(), pretraining_window=WINDOW, chunk_size=50)
    reading = llm.read(LONG, max_new_tokens=20, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert len({answer.text for answer in alone}) == len(QUESTIONS)
    reading.save(tmp_path / "reading.kv")
    loaded = llm.load(tmp_path / "reading.kv")
    for one in (reading, loaded):
        assert same(one.ask_batch(QUESTIONS, **FREE), alone)
        assert llm.engine.rows_unsupported_reason(one._prefix) == ""


def test_a_reading_that_was_evicted_and_is_made_again_answers_batches_alike(llm):
    kept = KeptReadings(llm, max_bytes=1 << 20)
    room = {"question": max(QUESTIONS, key=len), "max_new_tokens": 20}
    first = kept.get(LONG, **room)
    alone = [first.ask(question, **FREE) for question in QUESTIONS]
    assert same(first.ask_batch(QUESTIONS, **FREE), alone)
    assert kept.get(LONG, **room) is first
    kept.max_bytes = first.nbytes + 1  # room for one
    kept.get(LONG.swapcase(), **room).ask_batch(QUESTIONS, **FREE)
    again = kept.get(LONG, **room)
    assert again is not first
    assert same(again.ask_batch(QUESTIONS, **FREE), alone)


@pytest.fixture
def sizes(monkeypatch):
    """How many rows each step of a batch has."""
    seen, real = [], decode.step

    def step(model, rows, tokens, prefix):
        seen.append(len(rows))
        return real(model, rows, tokens, prefix)

    monkeypatch.setattr(decode, "step", step)
    return seen


@pytest.mark.parametrize("fit", [1, 2, 4])
def test_no_more_rows_than_memory_has_room_for(sizes, fit):
    model = tiny_llama(window=128)  # of its own: what others hold for a model counts
    llm = LongContextLLM(model, byte_tokenizer(), chunk_size=50)
    plan = llm.plan(LONG, max_new_tokens=20, question_reserve=110)
    own = max(len(llm.prompts.question(question)) for question in QUESTIONS) + 20
    memory = memory_of_model(model)
    beside = MemoryBudget(memory).rows_bytes(plan, own, fit)["cpu"] if fit > 1 else 0
    limited = LongContextLLM(
        model, byte_tokenizer(), chunk_size=50, memory_limit=plan.memory.needed_bytes + beside
    )
    reading = limited.read(LONG, max_new_tokens=20, question_reserve=110)
    answers = reading.ask_batch(QUESTIONS, **FREE)
    assert max(sizes, default=1) == fit
    assert same(answers, [reading.ask(question, **FREE) for question in QUESTIONS])


def test_a_cancelled_batch_has_what_there_is_and_the_reading_goes_on(llm):
    reading = llm.read(LONG, max_new_tokens=20, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    looks = iter(range(1000))
    answers = reading.ask_batch(QUESTIONS, at_once=2, cancelled=lambda: next(looks) >= 8, **FREE)
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 5
    assert 0 < answers[0].usage.completion_tokens < 20
    assert alone[0].text.startswith(answers[0].text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert [answer.text for answer in answers[2:]] == [""] * 3
    stopped = threading.Event()
    stopped.set()
    assert [a.text for a in reading.ask_batch(QUESTIONS, cancelled=stopped)] == [""] * 5
    assert same(reading.ask_batch(QUESTIONS, **FREE), alone)


@pytest.mark.parametrize("evidence", [False, True], ids=["together", "one by one"])
def test_progress_counts_the_tokens_of_the_questions(llm, evidence):
    reading = llm.read(SHORT, max_new_tokens=4, question_reserve=110)
    told = []
    answers = reading.ask_batch(
        QUESTIONS[:3], evidence=evidence, progress=lambda *at: told.append(at), **FREE
    )
    total = sum(a.usage.prompt_tokens - a.usage.cached_tokens for a in answers)
    assert {whole for _, whole in told} == {total}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (total, total)
    assert len(told) > 3  # the long question is read in chunks of 50


def spans(answer):
    return [(e.document_id, e.start, e.end, e.text) for e in answer.evidence]


def scores(answer):
    return pytest.approx([e.score for e in answer.evidence], rel=1e-9)


@pytest.mark.parametrize("at_once", [1, 2, 16])
@pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])
def test_with_evidence_each_answer_is_the_same_and_has_it(llm, text, at_once):
    reading = llm.read(text, max_new_tokens=8, question_reserve=110)
    answers = reading.ask_batch(QUESTIONS, evidence=True, at_once=at_once, **FREE)
    assert same(answers, reading.ask_batch(QUESTIONS, **FREE))
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    assert [spans(answer) for answer in answers] == [spans(answer) for answer in alone]
    for answer, own in zip(answers, alone, strict=True):
        assert answer.evidence
        assert answer.attention[0] == pytest.approx(own.attention[0], rel=1e-9, abs=1e-15)
        assert [e.score for e in answer.evidence] == scores(own)


def test_evidence_of_rows_whose_answers_are_long_or_stop_early(llm, monkeypatch):
    """Long ones are weighed in between; what a stop text ends does not count."""
    monkeypatch.setattr("selfextend_rag.evidence.watch._AT_ONCE", 5)
    monkeypatch.setattr("selfextend_rag.evidence.watch._SPARE", 3)
    reading = llm.read(LONG, max_new_tokens=30, question_reserve=110)
    free = reading.ask("Who?", **FREE).text
    questions = [
        {"question": "Bob?", "max_new_tokens": 30},
        {"question": "Who?", "stop": free[5:8]},
        {"question": "Why", "max_new_tokens": 1},
    ]
    alone = [reading.ask(**{**FREE, **one}) for one in questions]
    answers = reading.ask_batch(questions, evidence=True, **FREE)
    assert same(answers, alone)
    for answer, own in zip(answers, alone, strict=True):
        assert spans(answer) == spans(own)
        assert answer.evidence
        assert [e.score for e in answer.evidence] == scores(own)


def test_evidence_of_rows_of_a_model_with_sliding_layers():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=261, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=24,
        initializer_range=0.2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).double().eval()
    llm = LongContextLLM(model, byte_tokenizer(), pretraining_window=WINDOW, chunk_size=50)
    reading = llm.read(LONG, max_new_tokens=20, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    answers = reading.ask_batch(QUESTIONS, evidence=True, **FREE)
    assert same(answers, alone)
    for answer, own in zip(answers, alone, strict=True):
        assert spans(answer) == spans(own)
        assert [e.score for e in answer.evidence] == scores(own)


@pytest.mark.parametrize(
    ("questions", "options", "error", "says"),
    [
        ("Who?", {}, TypeError, "must be a list of questions, got one str; use ask"),
        (["Who?", 3], {}, TypeError, "question 2 must be a text, or a dict .* got 3"),
        ([{"text": "Who?"}], {}, TypeError, "question 1 must be a text, or a dict with the text"),
        ([{"question": "Who?", "progress": print}], {}, TypeError, "'progress' of its own; pass"),
        (["Who?"], {"at_once": 0}, ValueError, "at_once must be a positive integer, got 0"),
        (["Who?"], {"top_p": 2}, ValueError, "top_p must be in"),
        (
            ["Who?", {"question": "Bob?", "temperature": -1}],
            {},
            ValueError,
            "temperature must be 0 or a positive number, got -1\nIt was question 2 of the batch",
        ),
        (["Who?", "Who? " * 99], {}, ContextBudgetExceeded, "\nIt was question 2 of the batch"),
        (["Who?", {"question": "Bob?", "heat": 1}], {}, TypeError, "heat.*\nIt was question 2"),
    ],
)
def test_what_can_not_be_asked_is_refused_before_the_model_runs(
    llm, monkeypatch, questions, options, error, says
):
    reading = llm.read(SHORT, max_new_tokens=4)
    monkeypatch.setattr(llm.model, "forward", None)
    with pytest.raises(error) as raised:
        reading.ask_batch(questions, **options)
    told = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert re.search(says, told), told


def test_no_questions_have_no_answers(llm):
    assert llm.read(SHORT).ask_batch([]) == []


def test_an_answer_that_fails_is_named_and_leaves_the_reading_as_it_was(llm, monkeypatch):
    reading = llm.read(LONG, max_new_tokens=9, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    held = reading.nbytes
    real, calls = Sampler.pick, []

    def pick(sampler, logits):
        calls.append(sampler)
        if len(calls) == 7:
            raise ConstraintError("no token may come next")
        return real(sampler, logits)

    monkeypatch.setattr(Sampler, "pick", pick)
    with pytest.raises(ConstraintError, match="no token") as raised:
        reading.ask_batch(QUESTIONS, **FREE)
    assert raised.value.__notes__ == ["It was the answer to question 2 of the batch."]
    monkeypatch.undo()
    assert reading.nbytes == held
    assert same(reading.ask_batch(QUESTIONS, **FREE), alone)


def test_sixteen_threads_may_ask_batches(llm):
    reading = llm.read(LONG, max_new_tokens=6, question_reserve=110)
    alone = [reading.ask(question, **FREE) for question in QUESTIONS]
    wrong = []

    def work(n):
        asked = QUESTIONS[n % 5 :] + QUESTIONS[: n % 5]
        right = alone[n % 5 :] + alone[: n % 5]
        if not same(reading.ask_batch(asked, **FREE), right):
            wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a deadlock"
    assert wrong == []
