"""The chain over whole documents: LangChain's keys, what it remembers, and LangGraph."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.exceptions import ModelTimeoutError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from langchain_selfextend import (
    ChatSelfExtend,
    ContextWindowExceeded,
    FullDocumentRetriever,
    create_full_document_chain,
)
from tests.langchain_selfextend.conftest import SMALL

KEY = Document(
    "The pass key is 48213. Remember it. 48213 is the pass key. "
    + "The grass is green. The sky is blue. " * 12,
    metadata={"source": "key.txt", "year": 1611},
)
QUESTION = "What is the pass key?"


@pytest.fixture
def chain(chat):
    return create_full_document_chain(chat, [KEY])


def reads(monkeypatch, chat):
    """Count the readings of a model."""
    calls = []
    read = chat.llm.read
    monkeypatch.setattr(chat.llm, "read", lambda *a, **k: calls.append(k) or read(*a, **k))
    return calls


def test_the_keys_of_a_retrieval_chain_and_three_more(chain):
    result = chain.invoke({"input": QUESTION, "more": 1})
    assert list(result) == ["input", "more", "context", "answer", "evidence", "plan", "usage"]
    assert result["input"] == QUESTION
    assert result["context"] == [KEY]
    assert result["answer"] == "48213"
    assert result["plan"]["extended_window"] >= result["plan"]["prompt_tokens"]
    assert result["usage"]["input_tokens"] == result["plan"]["prompt_tokens"]


def test_the_documents_are_read_once_for_all_questions(chat, monkeypatch):
    calls = reads(monkeypatch, chat)
    chain = create_full_document_chain(chat, [KEY])
    for _ in range(2):
        assert chain.invoke({"input": QUESTION})["answer"] == "48213"
    assert asyncio.run(chain.ainvoke({"input": QUESTION}))["answer"] == "48213"
    assert [each["answer"] for each in chain.batch([{"input": QUESTION}] * 3)] == ["48213"] * 3
    assert len(calls) == 1


def test_the_answer_comes_in_pieces_after_the_context(chain):
    async def awaited():
        return [chunk async for chunk in chain.astream({"input": QUESTION})]

    for chunks in (list(chain.stream({"input": QUESTION})), asyncio.run(awaited())):
        assert [list(chunk) for chunk in chunks[:2]] == [["input"], ["context"]]
        pieces = [chunk["answer"] for chunk in chunks[2:-1]]
        assert len(pieces) > 2
        assert "".join(pieces) == "48213"
        assert list(chunks[-1]) == ["evidence", "plan", "usage"]


def test_the_passages_an_answer_rests_on_keep_the_metadata_of_their_document(chat):
    other = Document("The gate is shut at night. " * 8, metadata={"source": "gate.txt"})
    chain = create_full_document_chain(chat, [other, KEY])
    passages = chain.invoke({"input": QUESTION})["evidence"]
    first = passages[0]
    assert "48213" in first.page_content
    assert (first.metadata["source"], first.metadata["year"]) == ("key.txt", 1611)
    start, end = first.metadata["start"], first.metadata["end"]
    assert KEY.page_content[start:end] == first.page_content
    assert 0 < first.metadata["score"] <= 1
    assert asyncio.run(chain.ainvoke({"input": QUESTION}))["evidence"] == passages


def test_evidence_may_be_switched_off(chat):
    chain = create_full_document_chain(chat, [KEY], evidence=False)
    result = chain.invoke({"input": QUESTION})
    assert (result["answer"], result["evidence"]) == ("48213", [])


def test_an_empty_answer_is_there_all_the_same(chat):
    result = create_full_document_chain(chat, [KEY], stop=["4"]).invoke({"input": QUESTION})
    assert result["answer"] == ""


def test_a_conversation_goes_before_the_question(chat, monkeypatch):
    asked = []
    question = chat.llm.prompts.question
    monkeypatch.setattr(
        chat.llm.prompts,
        "question",
        lambda text, history=(): asked.append(question(text, history)) or asked[-1],
    )
    history = [HumanMessage("Is there a key?"), AIMessage("Yes."), ("human", "Which?")]
    chain = create_full_document_chain(chat, [KEY])
    result = chain.invoke({"input": QUESTION, "chat_history": history})
    assert result["answer"] == "48213"
    assert result["chat_history"] == history
    assert {chat.llm.prompts.codec.decode(prompt.tokens) for prompt in asked} == {
        "\n\nQuestion: Is there a key?\nAnswer: Yes.\n\nQuestion: Which?\n\n"
        "Question: What is the pass key?\nAnswer:"
    }
    chain.invoke({"input": QUESTION, "chat_history": [AIMessage("Hello!")]})
    assert chat.llm.prompts.codec.decode(asked[-1].tokens) == (
        "\n\nQuestion: \nAnswer: Hello!\n\nQuestion: What is the pass key?\nAnswer:"
    )
    with pytest.raises(ValueError, match="roles user and assistant, got one of role 'syst"):
        chain.invoke({"input": QUESTION, "chat_history": [SystemMessage("x")]})


def test_a_long_conversation_is_given_space(chat, monkeypatch):
    calls = reads(monkeypatch, chat)
    chain = create_full_document_chain(chat, [KEY])
    chain.invoke({"input": QUESTION})
    history = [HumanMessage("Is the sky blue?"), AIMessage("It is.")] * 20
    assert chain.invoke({"input": QUESTION, "chat_history": history})["answer"]
    assert chain.invoke({"input": QUESTION, "chat_history": [*history, *history[:2]]})["answer"]
    assert len(calls) == 2


def test_each_call_may_bring_its_documents(chat):
    chain = create_full_document_chain(chat)
    assert chain.invoke({"input": QUESTION, "context": [KEY]})["answer"] == "48213"
    with pytest.raises(ValueError, match="there are no documents; give them to create_full"):
        chain.invoke({"input": QUESTION})


def test_a_retriever_is_asked_for_each_question(chat):
    other = Document("The gate is shut.", metadata={"source": "gate.txt"})
    retriever = FullDocumentRetriever(documents=[KEY, other], k=1)
    chain = create_full_document_chain(chat, retriever)
    assert chain.invoke({"input": QUESTION})["context"] == [KEY]
    assert asyncio.run(chain.ainvoke({"input": "Is the gate shut?"}))["context"] == [other]


def test_it_can_be_anywhere_in_a_chain(chat):
    chain = create_full_document_chain(chat.llm, KEY, max_tokens=8)
    piped = RunnableLambda(lambda text: {"input": text}) | chain | (lambda out: out["answer"])
    assert piped.invoke(QUESTION) == "48213"
    assert asyncio.run(piped.ainvoke(QUESTION)) == "48213"


def test_options_of_the_model_and_of_the_chain(chat):
    short = create_full_document_chain(chat, [KEY], max_tokens=2)
    assert short.invoke({"input": QUESTION})["plan"]["max_new_tokens"] == 2
    own = ChatSelfExtend(**SMALL, stop=["13"])
    assert create_full_document_chain(own, [KEY]).invoke({"input": QUESTION})["answer"] == "482"
    hurried = ChatSelfExtend(**{**SMALL, "timeout": 1e-9})
    with pytest.raises(ModelTimeoutError):
        create_full_document_chain(hurried, [KEY]).invoke({"input": QUESTION})
    with pytest.raises(TypeError, match="unknown option temprature"):
        create_full_document_chain(chat, [KEY], temprature=1)
    with pytest.raises(TypeError, match=r"llm must be a ChatSelfExtend"):
        create_full_document_chain("gpt", [KEY])
    with pytest.raises(ValueError, match="there are no documents; the chain needs at least one"):
        create_full_document_chain(chat, [])


@pytest.mark.parametrize("given", ["a question", {"question": "x"}, {"input": ["x"]}])
def test_another_input_is_refused(chain, given):
    with pytest.raises(ValueError, match=r'the chain takes \{"input": "a question"'):
        chain.invoke(given)


def test_documents_that_do_not_fit_are_the_frameworks_error(chat):
    chain = create_full_document_chain(chat, [Document("word " * 5000)])
    with pytest.raises(ContextWindowExceeded):
        chain.invoke({"input": QUESTION})
    with pytest.raises(ContextWindowExceeded):
        asyncio.run(chain.ainvoke({"input": QUESTION}))


def test_it_is_a_node_of_a_graph_whose_state_is_kept(chain):
    class State(TypedDict, total=False):
        input: str
        chat_history: list[Any]
        context: list[Document]
        answer: str
        evidence: list[Document]
        plan: dict[str, Any]

    graph = StateGraph(State)
    graph.add_node("read", chain)
    graph.add_edge(START, "read")
    graph.add_edge("read", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    assert app.invoke({"input": QUESTION}, config)["answer"] == "48213"
    assert asyncio.run(app.ainvoke({"input": QUESTION}, config))["answer"] == "48213"
    kept = app.get_state(config).values
    assert kept["context"] == [KEY]
    assert kept["plan"]["pretraining_window"] == 512


async def test_the_timeout_bounds_the_reading_of_the_documents_too(chat, monkeypatch):
    """It was looked at once they had been read, which may take minutes."""
    chain = create_full_document_chain(ChatSelfExtend(**SMALL, timeout=0.05), [KEY])
    prefill = chat.llm.engine.prefill

    def slow(*given, cancelled, **options):
        time.sleep(0.1)
        return prefill(*given, cancelled=cancelled, **options)

    monkeypatch.setattr(chat.llm.engine, "prefill", slow)
    with pytest.raises(ModelTimeoutError, match="the timeout has ended the reading"):
        chain.invoke({"input": QUESTION})
    with pytest.raises(ModelTimeoutError, match="the timeout has ended the reading"):
        await chain.ainvoke({"input": QUESTION})


@pytest.mark.parametrize("through", ["chat", "chain"])
async def test_a_caller_that_gives_up_is_back_within_a_chunk_and_no_forward_begins(chat, through):
    """The prompt is one chunk, in which each layer takes a while."""
    begun, seconds = [], 0.5
    chat.invoke(QUESTION)  # the model has been looked at
    layers = [m for m in chat.llm.model.modules() if type(m).__name__.endswith("DecoderLayer")]
    slow = [lambda *given: begun.append(time.monotonic()), lambda *given: time.sleep(seconds)]
    hooks = [chat.llm.model.register_forward_pre_hook(slow[0])]
    hooks += [layer.register_forward_pre_hook(slow[1]) for layer in layers]
    chain = create_full_document_chain(chat, [KEY])
    prompt = f"Once more: {KEY.page_content} {QUESTION}"
    asked = chat.ainvoke(prompt) if through == "chat" else chain.ainvoke({"input": QUESTION})
    try:
        task = asyncio.ensure_future(asked)
        while not begun:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.1)
        assert time.monotonic() - begun[0] < seconds * (len(layers) - 1)
        await asyncio.sleep(seconds)
        assert len(begun) == 1
    finally:
        for hook in hooks:
            hook.remove()
    assert (await chain.ainvoke({"input": QUESTION}))["answer"] == "48213"


def test_events_name_the_chain(chain):
    async def main():
        return [event async for event in chain.astream_events({"input": QUESTION}, version="v2")]

    events = asyncio.run(main())
    assert {event["name"] for event in events} == {"full_document_chain", "ChatSelfExtend"}
    events = [event for event in events if event["name"] == "full_document_chain"]
    pieces = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream"]
    assert "".join(piece.get("answer", "") for piece in pieces) == "48213"
