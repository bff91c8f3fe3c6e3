"""What a user gives beside the prompt: it reaches the model, or is refused by name."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading

import pytest
from llama_index.core import Document
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from llama_index.llms.selfextend import (
    FullDocumentQueryEngine,
    FullDocumentRetriever,
    SelfExtendLLM,
)
from selfextend_rag import ModelLoadError, Reading

SYSTEM = "You answer as an archivist."
QUESTION = "What is the pass key?"
KEY = Document(text="The pass key is 48213.", id_="key")


def user(text):
    return ChatMessage(role="user", content=text)


def system(text):
    return ChatMessage(role="system", content=text)


@pytest.fixture
def prompts(monkeypatch):
    """Prompts as they are handed to the core, in order."""
    from selfextend_rag.text.prompts import PromptBuilder

    seen, built = [], PromptBuilder.prompt

    def watched(self, prompt, tools=()):
        seen.append(prompt)
        return built(self, prompt, tools)

    monkeypatch.setattr(PromptBuilder, "prompt", watched)
    return seen


@pytest.fixture
def asked(monkeypatch):
    """Questions and histories that readings are asked, in order."""
    seen, stream = [], Reading.stream

    def watched(self, question, **options):
        seen.append((question, list(options.get("history", ()))))
        return stream(self, question, **options)

    monkeypatch.setattr(Reading, "stream", watched)
    return seen


def test_the_system_prompt_reaches_a_plain_model_once_in_every_call(core, prompts):
    llm = SelfExtendLLM(core, max_new_tokens=2, system_prompt=SYSTEM)
    llm.complete("Hi")
    llm.predict(PromptTemplate("Hi"))
    llm.chat([user("Hi")])
    llm.chat([system(SYSTEM), user("Hi")])
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else prompt[0]["content"]
        assert text.count(SYSTEM) == 1
        assert prompt == f"{SYSTEM}\n\nHi" or [m["role"] for m in prompt] == ["system", "user"]


def test_the_system_prompt_reaches_a_chat_model_once_in_every_call(chat_core, prompts):
    llm = SelfExtendLLM(chat_core, max_new_tokens=2, system_prompt=SYSTEM)
    llm.complete("Hi")
    llm.predict(PromptTemplate("Hi"))
    llm.chat([user("Hi")])
    for prompt in prompts:
        said = [(message["role"], message["content"]) for message in prompt]
        assert said == [("system", SYSTEM), ("user", "Hi")]
    llm.chat([system("Be brief."), user("Hi")])
    assert prompts[-1][0]["content"] == f"{SYSTEM}\n\nBe brief."


@pytest.mark.parametrize("which", ["core", "chat_core"])
def test_the_system_prompt_reaches_the_model_of_every_engine(which, request, asked):
    llm = SelfExtendLLM(request.getfixturevalue(which), max_new_tokens=2, system_prompt=SYSTEM)
    engine = FullDocumentQueryEngine.from_documents([KEY], llm=llm, question_reserve=200)
    engine.query(QUESTION)
    chat = engine.as_chat_engine()
    first = chat.chat(QUESTION).response
    chat.chat("And?")
    began = f"{SYSTEM}\n\n{QUESTION}"
    assert asked == [(began, []), (began, []), ("And?", [(began, first)])]


def test_a_system_message_of_a_conversation_comes_before_its_first_question(llm, asked):
    engine = FullDocumentQueryEngine.from_documents([KEY], llm=llm, question_reserve=100)
    engine.as_chat_engine([system("Be kind.")]).chat(QUESTION)
    assert asked == [(f"Be kind.\n\n{QUESTION}", [])]


def test_a_plain_model_s_prompts_may_be_written_by_functions(core, prompts):
    llm = SelfExtendLLM(
        core,
        max_new_tokens=2,
        system_prompt=SYSTEM,
        messages_to_prompt=lambda messages: "".join(
            f"{m.role.value}: {m.content}\n" for m in messages
        ),
        completion_to_prompt=lambda text: f"<{text}>",
    )
    llm.chat([user("Hi")])
    llm.complete("Hi")
    assert prompts == [f"system: {SYSTEM}\nuser: Hi\n", f"{SYSTEM}\n\n<Hi>"]


def test_a_control_token_that_a_function_writes_is_refused_and_not_read_as_text(core):
    end = core.tokenizer.eos_token
    llm = SelfExtendLLM(core, completion_to_prompt=lambda text: f"{text}{end}")
    with pytest.raises(ValueError, match="text here and no control token"):
        llm.complete("Hi")
    assert SelfExtendLLM(core, max_new_tokens=2).complete(f"Hi {end}") is not None


@pytest.mark.parametrize(
    "option",
    [
        {"messages_to_prompt": str},
        {"completion_to_prompt": str.upper},
        {"query_wrapper_prompt": PromptTemplate("[{query_str}]")},
    ],
)
def test_what_would_write_the_prompts_of_a_chat_model_or_a_reading_is_refused(
    core, chat_core, option
):
    (name,) = option
    with pytest.raises(TypeError, match=name):
        SelfExtendLLM(chat_core, **option)
    with pytest.raises(TypeError, match=f"{name}.*read without it"):
        FullDocumentQueryEngine.from_documents([KEY], llm=SelfExtendLLM(core, **option))


def test_an_output_parser_is_refused_by_engines_that_would_not_use_it(core):
    class Key(BaseModel):
        value: str

    llm = SelfExtendLLM(core, output_parser=PydanticOutputParser(Key))
    with pytest.raises(TypeError, match="output_parser"):
        FullDocumentQueryEngine.from_documents([KEY], llm=llm)


def test_options_of_the_langchain_class_and_of_huggingfacellm_are_taken(core):
    llm = SelfExtendLLM(llm=core, max_tokens=5, timeout=90.0, quantization_config=None, stop="x")
    assert (llm.core, llm.metadata.num_output, llm.stop) == (core, 5, ["x"])
    llm = SelfExtendLLM(
        model_name="bundled",
        tokenizer_name="bundled",
        generate_kwargs={"temperature": 0.5, "do_sample": True},
        is_chat_model=False,
    )
    assert (llm.model, llm.temperature) == ("bundled", 0.5)
    for option in ({"stopping_ids": [1]}, {"tokenizer_kwargs": {"a": 1}}):
        with pytest.raises(TypeError, match=f"{next(iter(option))}.*no option here: "):
            SelfExtendLLM("bundled", **option)
    with pytest.raises(TypeError, match="given twice"):
        SelfExtendLLM("bundled", max_tokens=5, max_new_tokens=6)
    with pytest.raises(ModelLoadError):
        SelfExtendLLM("/nowhere/model", quantization_config={"quant_method": "none"})


def test_an_answer_that_takes_too_long_is_an_error_and_frees_the_model(core):
    llm = SelfExtendLLM(core, max_new_tokens=4, timeout=0.0)
    with pytest.raises(TimeoutError, match=r"timeout of 0\.0 seconds"):
        llm.complete("abc")
    with pytest.raises(TimeoutError):
        list(llm.stream_chat([user("abc")]))
    assert core.generate("abc", max_new_tokens=2).text
    stopped = threading.Event()
    stopped.set()
    late = SelfExtendLLM(core, max_new_tokens=4, timeout=900)
    assert late.complete("abc", cancelled=stopped).raw["finish_reason"] == "cancelled"


def _retrieved(retriever):
    return [found.node.node_id for found in retriever.retrieve(QUESTION)]


def _answered(engine):
    return str(engine.query(QUESTION))


def _made():
    llm = SelfExtendLLM.bundled(max_new_tokens=8)
    engine = FullDocumentQueryEngine.from_documents([KEY], llm=llm)
    return engine, FullDocumentRetriever([KEY], llm=llm), engine.as_chat_engine()


def test_engines_and_retrievers_survive_copies_and_pickles():
    engine, retriever, chat = _made()
    for again in (copy.deepcopy, copy.copy, lambda made: pickle.loads(pickle.dumps(made))):
        assert _answered(again(engine)) == "48213"
        assert again(engine)._llm.core.model is engine._llm.core.model
        assert again(engine).reading.plan.settings == engine.reading.plan.settings
        assert again(engine).reading.plan.total_tokens == engine.reading.plan.total_tokens
        assert again(chat).chat(QUESTION).response == "48213"
        assert _retrieved(again(retriever)) == ["key"]
    assert copy.deepcopy(engine).reading is engine.reading


@pytest.mark.slow
def test_an_engine_is_the_same_in_a_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_answered, (_made()[0],)) == "48213"


def test_an_engine_of_a_loaded_model_says_why_it_is_not_pickled(llm):
    engine = FullDocumentQueryEngine.from_documents([KEY], llm=llm)
    assert _answered(copy.deepcopy(engine)) == _answered(engine)
    with pytest.raises(TypeError, match="was made from loaded objects: give it a folder"):
        pickle.dumps(engine)


def test_engines_report_their_model_s_run_and_usage(llm):
    class Seen(BaseEventHandler):
        def handle(self, event, **kwargs):
            events.append(event)

    events, handler = [], Seen()
    engine = FullDocumentQueryEngine.from_documents([KEY], llm=llm, question_reserve=100)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        response = engine.query(QUESTION)
        chatted = engine.as_chat_engine().chat(QUESTION)
        streamed = engine.as_chat_engine().stream_chat(QUESTION)
        list(streamed.response_gen)
    finally:
        dispatcher.event_handlers.remove(handler)
    names = [event.class_name() for event in events]
    for name in ("QueryStart", "LLMCompletionStart", "LLMCompletionEnd", "QueryEnd"):
        assert names.count(f"{name}Event") == 1, name
    for name in ("LLMChatStart", "LLMChatEnd", "StreamChatStart", "StreamChatEnd"):
        assert names.count(f"{name}Event") == 2, name
    assert all(event.span_id for event in events if event.class_name().startswith("LLM"))
    ended = [event for event in events if event.class_name() == "LLMChatEndEvent"]
    for answer, end in zip((chatted, streamed), ended, strict=True):
        assert answer.metadata["usage"] == end.response.raw["usage"]
        assert answer.metadata["finish_reason"] == end.response.raw["finish_reason"]
    assert response.metadata["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("name", ["temperature", "top_k", "max_tokens", "timeout"])
def test_a_text_is_no_number(core, name):
    """``"0"`` was read as 0.0 when the model was made, and refused in a call."""
    with pytest.raises(ValueError, match="must be a number, got '1'"):
        SelfExtendLLM(core, **{name: "1"})


@pytest.mark.parametrize("name", ["context_window", "num_ctx"])
def test_a_context_window_that_there_is_is_what_llama_index_plans_with(core, name):
    there = core.planner.extended_window
    llm = SelfExtendLLM(core, **{name: 40})
    assert llm.metadata.context_window == 40
    assert llm.metadata.num_output <= 20
    assert SelfExtendLLM(core, **{name: there}).metadata.context_window == there
    answer = llm.complete("The sky is blue. " * 4)  # longer than 40, and read whole
    assert answer.raw["usage"]["completion_tokens"] <= llm.metadata.num_output
    for window, more in ((there + 1, {}), (40, {"max_tokens": 40})):
        with pytest.raises(ValueError, match=f"context_window must be from .* to {there}, "):
            SelfExtendLLM(core, **{name: window}, **more)
