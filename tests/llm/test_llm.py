"""Reading, asking and generating: every way of running the same thing says the same."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from selfextend_rag.documents import Document, DocumentError, Picture
from selfextend_rag.errors import (
    ContextBudgetExceeded,
    GenerationCancelled,
    ModelLoadError,
    UnknownPretrainingWindow,
)
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.model import is_extended
from selfextend_rag.positions import SelfExtend
from tests.tiny import byte_tokenizer, tiny_llama

SHORT = "The sky is blue."
LONG = "".join(f"Fact {i} is {i * i % 97}. " for i in range(14))
QUESTION = "What is fact 3?"
FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}
LENGTHS = pytest.mark.parametrize("text", [SHORT, LONG], ids=["plain", "extended"])


@pytest.fixture(params=["plain form", "chat form"])
def any_llm(request, llm, chat_llm):
    return llm if request.param == "plain form" else chat_llm


@pytest.fixture
def forwards(model):
    """Counts the model's forwards."""
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@LENGTHS
def test_a_reading_s_answer_is_that_of_a_fresh_run(any_llm, text):
    """The fresh run prefills document and question in one go, without our cache in between."""
    reading = any_llm.read(text, max_new_tokens=12)
    assert reading.plan.extended == (text is LONG)
    answer = reading.ask(QUESTION, **FREE)
    tokens = [
        *any_llm.prompts.documents([Document.from_text(text)]).tokens,
        *any_llm.prompts.question(QUESTION).tokens,
    ]
    fresh = list(
        any_llm.engine.generate(
            tokens,
            any_llm.runner.options(FREE, framed=True),
            settings=reading.plan.settings,
        )
    )
    text = any_llm.tokenizer.decode(fresh, skip_special_tokens=True)
    assert answer.text == (text if any_llm.prompts.chat else text.lstrip())
    assert answer.usage.prompt_tokens == len(tokens)
    assert answer.usage.cached_tokens == reading.plan.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.plan.settings == reading.plan.settings


@LENGTHS
def test_asking_again_gets_the_same_answer_whatever_was_asked_between(any_llm, text):
    reading = any_llm.read(text, max_new_tokens=12)
    first = reading.ask(QUESTION, **FREE).text
    other = reading.ask("Why?", **FREE).text
    assert reading.ask(QUESTION, **FREE).text == first
    assert reading.ask("Why?", **FREE).text == other


@LENGTHS
def test_streaming_is_blocking(any_llm, text):
    reading = any_llm.read(text, max_new_tokens=12)
    with reading.stream(QUESTION, **FREE) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text == reading.ask(QUESTION, **FREE).text
    prompt = [{"role": "user", "content": text}]
    stream = any_llm.stream(prompt, **FREE)
    assert "".join(stream) == stream.answer.text == any_llm.generate(prompt, **FREE).text


def test_readings_under_different_settings_share_one_model(llm):
    plain, extended = llm.read(SHORT), llm.read(LONG)
    before = plain.ask(QUESTION, **FREE).text, extended.ask(QUESTION, **FREE).text
    assert extended.plan.settings is not None
    assert not is_extended(llm.model)
    for _ in range(2):
        assert plain.ask(QUESTION, **FREE).text == before[0]
        assert extended.ask(QUESTION, **FREE).text == before[1]


def test_threads_on_one_llm_get_the_answers_they_would_get_alone(llm):
    readings = [llm.read(SHORT), llm.read(LONG)]
    alone = [[r.ask(q, **FREE).text for q in ("Why?", "Who?")] for r in readings]
    found = [[], []]

    def ask(n):
        found[n] = [readings[n].ask(q, **FREE).text for q in ("Why?", "Who?")]

    threads = [threading.Thread(target=ask, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_what_fits_the_window_is_the_stock_model_s_answer(llm):
    answer = llm.generate("Once upon", **FREE)
    ids = torch.tensor([[0, *llm.tokenizer.encode("Once upon", add_special_tokens=False)]])
    stock = llm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, eos_token_id=None
    )[0, ids.shape[1] :]
    assert answer.plan.settings is None
    assert answer.text == llm.tokenizer.decode(stock, skip_special_tokens=True)


def test_a_stop_text_ends_the_answer_and_is_left_out(llm):
    whole = llm.generate("Once upon", **FREE).text
    stop = whole[3:5]
    answer = llm.generate("Once upon", **{**FREE, "stop": stop})
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens < 12


def test_questions_in_the_plain_form_end_at_a_line_end_by_default(llm, monkeypatch):
    line = llm.tokenizer.encode(" \n a\nb", add_special_tokens=False)
    monkeypatch.setattr("selfextend_rag.engine.sampling.Sampler.pick", lambda *_: line.pop(0))
    answer = llm.read(SHORT).ask(QUESTION, max_new_tokens=6)
    assert answer.text == "a"
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens == 5


def test_an_answer_ends_at_the_tokenizer_s_end_token(llm, monkeypatch):
    tokens = [*llm.tokenizer.encode("ab", add_special_tokens=False), 1]
    monkeypatch.setattr(llm.model.generation_config, "eos_token_id", None)
    monkeypatch.setattr("selfextend_rag.engine.sampling.Sampler.pick", lambda *_: tokens.pop(0))
    answer = llm.generate("x")
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_too_long_is_said_before_the_model_runs(llm, forwards):
    limit = llm.planner.extended_window
    for call in (
        lambda: llm.read("x" * limit),
        lambda: llm.plan("x" * limit),
        lambda: llm.generate("x" * limit),
        lambda: llm.stream("x" * limit),
    ):
        with pytest.raises(ContextBudgetExceeded, match=r"drop \d+ tokens") as caught:
            call()
        assert caught.value.available == limit
    reading = llm.read(SHORT, max_new_tokens=20)
    forwards.clear()
    with pytest.raises(ContextBudgetExceeded, match="read again"):
        reading.ask("x" * 80, max_new_tokens=20)
    with pytest.raises(ContextBudgetExceeded):
        reading.ask(QUESTION, max_new_tokens=100)
    assert not forwards


def unmeasured(plan):
    """A plan without its memory, of which what is free changes from moment to moment."""
    return replace(plan, memory=None)


def test_the_plan_says_what_reading_would_do(llm, forwards):
    plan = llm.plan(LONG, max_new_tokens=9, question_reserve=30)
    assert not forwards
    reading = llm.read(LONG, max_new_tokens=9, question_reserve=30)
    assert unmeasured(plan) == unmeasured(reading.plan)
    assert (plan.max_new_tokens, plan.reserve_tokens) == (9, 30)
    assert plan.prompt_tokens == 1 + len(LONG.rstrip())
    only = llm.plan(LONG, question=QUESTION)
    assert only.reserve_tokens == len(f"\n\nQuestion: {QUESTION}\nAnswer:")
    assert unmeasured(llm.plan(LONG, question=["Why?", QUESTION])) == unmeasured(only)
    assert only.max_new_tokens == llm.budget.max_new_tokens == 16


def test_several_documents_and_texts_are_read_together(llm):
    documents = [Document.from_text(SHORT, title="Sky"), "Grass is green."]
    reading = llm.read(documents)
    assert [d.text for d in reading.documents] == [SHORT, "Grass is green."]
    whole = f"# Sky\n\n{SHORT}\n\n# Document 2\n\nGrass is green."
    assert reading.plan.prompt_tokens == 1 + len(whole)
    assert reading.nbytes > 0
    assert reading.seconds > 0


def test_progress_and_cancellation_of_a_reading(llm):
    told = []
    reading = llm.read(LONG, progress=lambda *figures: told.append(figures))
    total = reading.plan.prompt_tokens
    assert told == [(min(done, total), total) for done in range(50, total + 50, 50)]
    with pytest.raises(GenerationCancelled):
        llm.read(LONG, cancelled=lambda: True)


def test_an_answer_can_be_cancelled(llm):
    reading = llm.read(SHORT)
    assert reading.ask(QUESTION, cancelled=lambda: True, **FREE).finish_reason == "cancelled"
    whole = reading.ask(QUESTION, **FREE).text
    cancel = threading.Event()
    stream = llm.read(SHORT).stream(QUESTION, cancelled=cancel, **{**FREE, "max_new_tokens": 60})
    next(stream)
    cancel.set()
    assert whole.startswith(stream.answer.text[:3])
    assert stream.answer.finish_reason in ("cancelled", "length")
    assert reading.ask(QUESTION, **FREE).text == whole


def test_options_reach_the_sampler(llm):
    draws = {llm.generate("x", **FREE, temperature=3.0, seed=seed).text for seed in range(4)}
    assert len(draws) > 1
    again = [llm.generate("x", **FREE, temperature=3.0, seed=1).text for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(TypeError, match="max_tokens"):
        llm.generate("x", max_tokens=3)


def test_settings_of_the_caller_are_used(model):
    tokenizer = byte_tokenizer()
    fixed = LongContextLLM(model, tokenizer, group_size=5, neighbor_window=30)
    assert fixed.plan(LONG).settings == SelfExtend(5, 30)
    assert LongContextLLM(model, tokenizer, extension="always").plan(SHORT).extended
    never = LongContextLLM(model, tokenizer, extension="never")
    answer = never.read(LONG).ask(QUESTION, **FREE)
    assert answer.plan.settings is None
    assert answer.usage.completion_tokens == 12
    assert LongContextLLM(model, tokenizer, pretraining_window=1000).plan(LONG).settings is None
    assert LongContextLLM(model, tokenizer, max_group_size=3).planner.extended_window < (
        LongContextLLM(model, tokenizer, trained_fraction=1.0).planner.extended_window
    )
    assert LongContextLLM(model, byte_tokenizer(chat=True), prompt_form="plain").prompts.chat is (
        False
    )


def test_a_model_that_does_not_say_its_window_needs_to_be_told():
    model = tiny_llama()
    model.config.max_position_embeddings = 0
    with pytest.raises(UnknownPretrainingWindow, match="pass pretraining_window"):
        LongContextLLM(model, byte_tokenizer())
    assert LongContextLLM(model, byte_tokenizer(), pretraining_window=64).plan(SHORT)


def test_saved_models_are_loaded_with_their_tokenizer(tmp_path, model, llm):
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = LongContextLLM.from_pretrained(tmp_path, chunk_size=50)
    assert loaded.model.dtype == torch.float64
    assert not loaded.model.training
    assert loaded.generate("Once", **FREE).text == llm.generate("Once", **FREE).text
    eager = LongContextLLM.from_pretrained(
        tmp_path, dtype=torch.float32, model_options={"attn_implementation": "eager"}
    )
    assert eager.model.dtype == torch.float32
    assert eager.model.config._attn_implementation == "eager"


def test_models_that_can_not_be_had_are_one_kind_of_error(tmp_path, model):
    with pytest.raises(ModelLoadError, match="missing: there is no such folder"):
        LongContextLLM.from_pretrained(tmp_path / "missing")
    with pytest.raises(ModelLoadError, match="can't load the tokenizer"):
        LongContextLLM.from_pretrained("nobody/no-such-model")
    with pytest.raises(ModelLoadError, match="can't load"):
        LongContextLLM.from_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="can't load the model"):
        LongContextLLM.from_pretrained(tmp_path)


def test_a_model_without_some_of_its_weights_is_refused(tmp_path, model):
    """Transformers makes up what is missing, and warns in a log."""
    byte_tokenizer().save_pretrained(tmp_path)
    weights = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelLoadError, match=r"lacks 3 of its weights, such as .*layers\.1\.mlp"):
        LongContextLLM.from_pretrained(tmp_path)


def test_answers_are_json_values(llm):
    values = llm.read(LONG).ask(QUESTION, **FREE).to_dict()
    assert values["usage"]["completion_tokens"] == 12
    assert values["plan"]["extended"] is True
    assert set(values) == {
        *("text", "finish_reason", "usage", "plan", "tool_calls", "unfinished_call", "evidence")
    }


def test_tokens_of_a_text_and_of_a_whole_conversation_are_counted(chat_llm):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "1 + 1?"}]
    assert chat_llm.count_tokens("1 + 1?") == 6
    for tools in (None, [tool]):
        counted = chat_llm.count_tokens(messages, tools=tools)
        answer = chat_llm.generate(messages, tools=tools, max_new_tokens=1)
        assert counted == answer.usage.prompt_tokens


@pytest.fixture
def tokenized(any_llm, monkeypatch):
    """The texts that were tokenized, in order."""
    texts = []
    encoded, text = any_llm.prompts.codec.encoded, any_llm.prompts.codec.text
    monkeypatch.setattr(
        any_llm.prompts.codec,
        "encoded",
        lambda given, **options: texts.append(given) or encoded(given, **options),
    )
    monkeypatch.setattr(
        any_llm.prompts.codec,
        "text",
        lambda given, **options: texts.append(given) or text(given, **options),
    )
    return texts


def times(document, tokenized):
    return sum(document in text for text in tokenized)


def test_documents_that_were_planned_are_tokenized_once(any_llm, tokenized):
    plan = any_llm.plan(LONG, max_new_tokens=12)
    reading = any_llm.read(LONG, max_new_tokens=12)
    assert replace(reading.plan, memory=None) == replace(plan, memory=None)  # what is free varies
    assert reading.ask(QUESTION, **FREE).evidence
    assert times(LONG.rstrip(), tokenized) == 1


def test_documents_are_tokenized_again_once_they_are_read(any_llm, tokenized):
    """What a reading holds anyway is held by nothing else."""
    any_llm.read(SHORT)
    any_llm.read(SHORT)
    assert times(SHORT, tokenized) == 2


def test_a_changed_tokenizer_tokenizes_again(any_llm, tokenized):
    before = any_llm.plan(SHORT).prompt_tokens
    any_llm.tokenizer.add_tokens(["blue"])
    assert any_llm.plan(SHORT).prompt_tokens == before - 3
    assert times(SHORT, tokenized) == 2


def test_space_that_was_too_little_does_not_tokenize_again(any_llm, tokenized):
    for reserve in (10_000, 100):
        try:
            any_llm.read(SHORT, question_reserve=reserve, max_new_tokens=12)
        except ContextBudgetExceeded:
            continue
    assert times(SHORT, tokenized) == 1


def test_a_reading_keeps_the_space_that_its_plan_says_for_a_question(any_llm):
    asked = ["Who?", "Who has the second key of the old mill by the river?"]
    planned = any_llm.plan("The mill is old.", question=asked, max_new_tokens=7)
    read = any_llm.read("The mill is old.", question=asked, max_new_tokens=7)
    assert read.plan.reserve_tokens == planned.reserve_tokens
    assert read.plan.reserve_tokens != any_llm.read("The mill is old.").plan.reserve_tokens


@pytest.mark.parametrize("way", ["plan", "read", "plan_groups"])
def test_an_option_that_keeps_no_space_is_refused(any_llm, way):
    with pytest.raises(TypeError, match="unknown option max_tokens; space is kept by"):
        getattr(any_llm, way)("The mill is old.", max_tokens=7)


def test_an_unknown_option_lists_the_known_ones_before_anything_is_loaded(llm):
    words = r"unknown option foo of LongContextLLM; known are chunk_size, .*max_group_size"
    with pytest.raises(TypeError, match=words):
        LongContextLLM(llm.model, llm.tokenizer, foo=1)
    with pytest.raises(TypeError, match=words):
        LongContextLLM.from_pretrained("no/such/model", foo=1)


@pytest.mark.parametrize("call", ["read", "plan", "plan_groups"])
def test_a_model_of_text_refuses_pictures_and_says_what_reads_them(llm, call):
    document = Document.from_text("Anna.", title="scan", pictures=[Picture(b"data", 3, 4)])
    with pytest.raises(DocumentError, match=r"scan has 1 picture, .* vision model .*ocr=True"):
        getattr(llm, call)([document])
