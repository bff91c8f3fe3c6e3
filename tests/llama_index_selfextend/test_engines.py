"""Questions over documents that were read once: answers, passages, streams, conversations."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, Settings
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from llama_index.llms.selfextend import (
    FullDocumentQueryEngine,
    SelfExtendLLM,
    use_full_documents,
)
from selfextend_rag import ContextBudgetExceeded, DocumentError
from tests.llm.knowing import OTHERWISE, knowing_llm

PASSKEY = "The pass key is 48213. Remember it. 48213 is the pass key."
FILLER = "And the earth was without form, and void; and darkness was upon the deep. " * 12
QUESTION = "What is the pass key?"
DOCUMENTS = [
    Document(text=FILLER, id_="filler", metadata={"file_name": "filler.txt"}),
    Document(text=f"{FILLER}\n{PASSKEY}\n{FILLER}", id_="key", metadata={"year": 1900}),
]


@pytest.fixture(scope="module")
def llm(bundled):
    return SelfExtendLLM(bundled, max_new_tokens=12)


@pytest.fixture(scope="module")
def engine(llm):
    return FullDocumentQueryEngine.from_documents(DOCUMENTS, llm=llm, question_reserve=120)


@pytest.fixture
def streaming(llm, engine):
    return FullDocumentQueryEngine(llm, engine.reading, DOCUMENTS, streaming=True)


def check_sources(nodes):
    (best, *_) = nodes
    assert best.score == max(node.score for node in nodes)
    assert best.node.ref_doc_id == "key"
    assert best.node.metadata == {"year": 1900}
    text = DOCUMENTS[1].text
    assert best.node.text == text[best.node.start_char_idx : best.node.end_char_idx]
    assert "48213" in best.node.text


def test_an_answer_comes_with_its_passages_and_its_plan(engine):
    response = engine.query(QUESTION)
    assert type(response) is Response
    assert str(response) == "48213"
    check_sources(response.source_nodes)
    assert response.metadata["plan"]["extended"]
    assert response.metadata["usage"]["completion_tokens"] > 0
    assert response.metadata["finish_reason"] == "stop"


def test_the_documents_are_read_once_for_all_questions(engine):
    read = len(engine.reading.documents)
    for question in (QUESTION, "What is the colour of the sky?"):
        usage = engine.query(question).metadata["usage"]
        assert usage["cached_tokens"] == engine.reading.plan.prompt_tokens
    assert read == 2


def test_awaited_answers_are_the_same(engine):
    response = asyncio.run(engine.aquery(QUESTION))
    assert type(response) is Response
    assert str(response) == "48213"
    check_sources(response.source_nodes)


def test_streams_have_their_passages_once_they_have_ended(streaming):
    response = streaming.query(QUESTION)
    assert type(response) is StreamingResponse
    assert response.metadata["plan"]["extended"]
    assert response.source_nodes == []
    pieces = list(response.response_gen)
    assert len(pieces) > 1
    assert "".join(pieces) == "48213"
    check_sources(response.source_nodes)
    assert response.metadata["finish_reason"] == "stop"


def test_awaited_streams_have_them_too(streaming):
    async def main():
        response = await streaming.aquery(QUESTION)
        assert type(response) is AsyncStreamingResponse
        return response, [piece async for piece in response.async_response_gen()]

    response, pieces = asyncio.run(main())
    assert "".join(pieces) == "48213"
    check_sources(response.source_nodes)


def test_questions_from_threads_and_tasks_do_not_mix(engine):
    async def main():
        return await asyncio.gather(*(engine.aquery(QUESTION) for _ in range(6)))

    assert {str(response) for response in asyncio.run(main())} == {"48213"}


def test_what_does_not_fit_is_refused_before_it_is_read(llm):
    with pytest.raises(ContextBudgetExceeded):
        FullDocumentQueryEngine.from_documents([Document(text=FILLER * 40)], llm=llm)


def test_an_engine_can_be_made_from_an_event_loop(llm):
    async def main():
        made = await FullDocumentQueryEngine.afrom_documents(
            [Document(text=PASSKEY)], llm=llm, max_tokens=9
        )
        with pytest.raises(ContextBudgetExceeded):
            await FullDocumentQueryEngine.afrom_documents([Document(text=FILLER * 40)], llm=llm)
        return made, await made.aquery(QUESTION)

    made, response = asyncio.run(main())
    assert str(response) == "48213"
    assert made.reading.plan.max_new_tokens == 9


def test_a_question_that_outgrows_the_space_is_refused(engine):
    with pytest.raises(ContextBudgetExceeded, match="read again with more tokens reserved"):
        engine.query(FILLER * 20)


def test_a_document_without_text_is_refused(llm):
    with pytest.raises(DocumentError, match="has no text"):
        FullDocumentQueryEngine.from_documents([Document(text=" ")], llm=llm)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="needs a SelfExtendLLM, got MockLLM; give llm="):
        FullDocumentQueryEngine.from_documents(DOCUMENTS, llm=MockLLM())
    with pytest.raises(TypeError, match="got NoneType"):
        FullDocumentQueryEngine.from_documents(DOCUMENTS)


def test_the_model_of_the_settings_is_the_default(llm):
    use_full_documents(llm)
    document = Document(text=PASSKEY)
    assert str(FullDocumentQueryEngine.from_documents([document]).query(QUESTION)) == "48213"
    assert Settings.llm is llm


def test_options_of_the_engine_hold_for_its_answers(llm, engine):
    short = FullDocumentQueryEngine(llm, engine.reading, DOCUMENTS, max_tokens=2, evidence=False)
    response = short.query(QUESTION)
    assert response.metadata["usage"]["completion_tokens"] == 2
    assert response.metadata["finish_reason"] == "length"
    assert response.source_nodes == []


def test_a_reading_that_was_saved_brings_its_documents(llm, engine, tmp_path):
    engine.reading.save(tmp_path / "key.kv")
    again = FullDocumentQueryEngine(llm, llm.core.load(tmp_path / "key.kv"))
    response = again.query(QUESTION)
    assert str(response) == "48213"
    check_sources(response.source_nodes)


def test_callbacks_see_the_query_the_model_and_its_tokens(bundled, engine):
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler()
    llm = SelfExtendLLM(
        bundled, max_new_tokens=12, callback_manager=CallbackManager([debug, counter])
    )
    traced = FullDocumentQueryEngine(llm, engine.reading, DOCUMENTS)
    usage = traced.query(QUESTION).metadata["usage"]
    assert len(debug.get_event_pairs(CBEventType.QUERY)) == 1
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]


def test_progress_and_cancellation_reach_the_reading(llm):
    seen = []
    FullDocumentQueryEngine.from_documents(
        [Document(text=FILLER)], llm=llm, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] > 0


class First(BaseSelector):
    """Chooses the first engine; which one a tiny model would choose proves nothing."""

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass

    def _select(self, choices, query):
        return SelectorResult(selections=[SingleSelection(index=0, reason="first")])

    async def _aselect(self, choices, query):
        return self._select(choices, query)


def test_it_is_a_tool_for_routers_and_agents(engine, llm):
    tool = QueryEngineTool.from_defaults(engine, name="keys", description="Knows keys.")
    assert tool(QUESTION).content == "48213"
    assert asyncio.run(tool.acall(QUESTION)).content == "48213"
    router = RouterQueryEngine(First(), [tool], llm=llm)
    response = router.query(QUESTION)
    assert str(response) == "48213"
    check_sources(response.source_nodes)


def test_an_agent_calls_it_and_goes_on_from_its_answer(engine):
    tool = QueryEngineTool.from_defaults(engine, name="keys", description="Knows keys.")
    agent = FunctionAgent(tools=[tool], llm=SelfExtendLLM(knowing_llm(), max_new_tokens=120))
    output = asyncio.run(_run(agent, "Ask for the pass key."))
    (called,) = output.tool_calls
    assert (called.tool_name, called.tool_output.content) == ("keys", "48213")
    check_sources(called.tool_output.raw_output.source_nodes)
    assert str(output) == OTHERWISE


async def _run(agent, question):
    return await agent.run(question)


def test_a_router_lets_the_model_choose_between_engines(engine, llm):
    travel = Document(text="Travel is approved by the dean.", id_="travel")
    other = FullDocumentQueryEngine.from_documents([travel], llm=llm)
    tools = [
        QueryEngineTool.from_defaults(engine, name="keys", description="Knows keys."),
        QueryEngineTool.from_defaults(other, name="travel", description="Knows travel."),
    ]
    chooser = LLMSingleSelector.from_defaults(SelfExtendLLM(knowing_llm(), max_new_tokens=120))
    router = RouterQueryEngine(chooser, tools, llm=llm)
    response = router.query("Who approves travel?")
    assert {node.node.ref_doc_id for node in response.source_nodes} == {"travel"}
    awaited = asyncio.run(router.aquery("Who approves travel?"))
    assert str(awaited) == str(response)


def test_a_conversation_keeps_what_was_said_and_the_reading(engine):
    chat = engine.as_chat_engine()
    first = chat.chat(QUESTION)
    assert first.response == "48213"
    check_sources(first.source_nodes)
    streamed = chat.stream_chat("And again: What is the pass key?")
    second = "".join(streamed.response_gen)  # the little model was not trained on conversations
    assert second
    assert [(m.role.value, m.content) for m in chat.chat_history] == [
        ("user", QUESTION),
        ("assistant", "48213"),
        ("user", "And again: What is the pass key?"),
        ("assistant", second),
    ]
    chat.reset()
    assert chat.chat_history == []


def test_awaited_conversations_do_too(engine):
    async def main():
        chat = engine.as_chat_engine()
        first = await chat.achat(QUESTION)
        streamed = await chat.astream_chat(QUESTION)
        return chat, first, "".join([p async for p in streamed.async_response_gen()])

    chat, first, second = asyncio.run(main())
    assert first.response == "48213"
    check_sources(first.source_nodes)
    assert [m.content for m in chat.chat_history] == [QUESTION, "48213", QUESTION, second]


def test_earlier_turns_are_part_of_the_question(llm, engine):
    """They are written in the form that the documents' questions have."""
    history = [
        ChatMessage(role="user", content="Who?"),
        ChatMessage(role="assistant", content="Nobody."),
    ]
    asked = []
    stream = engine.reading.stream
    engine.reading.stream = lambda question, **options: (
        asked.append((question, options["history"])) or stream(question, **options)
    )
    try:
        engine.as_chat_engine(history).chat(QUESTION)
        engine.as_chat_engine().chat(QUESTION, chat_history=history)
    finally:
        del engine.reading.stream
    assert asked == [(QUESTION, [("Who?", "Nobody.")])] * 2


def test_a_conversation_that_outgrows_the_space_is_refused_and_stays_as_it_was(engine):
    history = [
        ChatMessage(role="user", content=FILLER * 20),
        ChatMessage(role="assistant", content="I see."),
    ]
    chat = engine.as_chat_engine(history)
    with pytest.raises(ContextBudgetExceeded):
        chat.chat(QUESTION)
    assert chat.chat_history == history


def test_what_has_no_place_in_such_a_conversation_is_refused(engine):
    history = [ChatMessage(role="tool", content="Sunny.")]
    with pytest.raises(ValueError, match="roles user and assistant, got one of role 'tool'"):
        engine.as_chat_engine(history).chat(QUESTION)
