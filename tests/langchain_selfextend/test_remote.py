"""ChatSelfExtend, SelfExtendLLM, the retriever and the chain on a server: only base_url differs."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("httpx2", reason="the extra remote is not installed")

from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from langchain_selfextend import (
    ChatSelfExtend,
    ContextWindowExceeded,
    FullDocumentRetriever,
    SelfExtendLLM,
    create_full_document_chain,
)
from selfextend_rag import NotOnServer, RemoteLLM
from tests.llm.remote.fake import MODEL, FakeServer
from tests.tiny import byte_tokenizer

KEYS = [
    Document("The red key is 48213.", metadata={"source": "red"}),
    Document("The blue key is 77.", metadata={"source": "blue"}),
]


@pytest.fixture
def server():
    with FakeServer(key="hunter2", window=1000) as server:
        yield server


@pytest.fixture
def chat(server):
    return ChatSelfExtend(
        base_url=server.url, api_key="hunter2", tokenizer=byte_tokenizer(chat=True), max_tokens=20
    )


def test_it_invokes_streams_and_batches(server, chat):
    assert chat.model == MODEL
    assert isinstance(chat.llm, RemoteLLM)
    assert chat.profile["max_input_tokens"] == 980
    message = chat.invoke("The key is 5.")
    assert message.content == " 5"
    assert message.usage_metadata["input_tokens"] == len(server.requests[0][1]["prompt"])
    assert "".join(chunk.text for chunk in chat.stream("The key is 6.")) == " 6"
    found = chat.batch([f"The key is {n}." for n in range(8)])
    assert [message.content.strip() for message in found] == [str(n) for n in range(8)]
    assert chat.get_num_tokens("abc") == 3
    with pytest.raises(ContextWindowExceeded, match="that the server takes"):
        chat.invoke("x" * 2000)


async def test_it_is_awaited(chat):
    assert (await chat.ainvoke("The key is 5.")).content == " 5"
    assert [message.content for message in await chat.abatch(["key is 1", "key is 2"])] == [
        " 1",
        " 2",
    ]


def test_the_completion_model_and_structured_answers(server):
    options = {"base_url": server.url, "api_key": "hunter2"}
    llm = SelfExtendLLM(**options, tokenizer=byte_tokenizer(chat=True))
    assert llm.invoke("The key is 9.") == " 9"

    class Key(BaseModel):
        key: int

    server.answer = '{"key": 9}'
    chat = ChatSelfExtend(llm=llm.llm, max_tokens=30)
    assert chat.with_structured_output(Key).invoke("The key is 9.") == Key(key=9)
    assert server.requests[-1][1]["response_format"]["type"] == "json_schema"


def test_the_chain_and_the_retriever_run_unchanged(server, chat):
    retriever = FullDocumentRetriever(documents=KEYS, llm=chat)
    chain = create_full_document_chain(chat, retriever)
    found = chain.invoke({"input": "The key?"})
    assert found["answer"] == " 77"
    assert found["evidence"] == []
    assert found["plan"]["served_window"] == 1000
    assert [document.metadata["source"] for document in found["context"]] == ["red", "blue"]
    parts = list(chain.stream({"input": "The key?", "chat_history": [HumanMessage("Hi.")]}))
    assert "".join(part.get("answer", "") for part in parts) == " 77"
    with pytest.raises(NotOnServer, match="evidence"):
        create_full_document_chain(chat, KEYS, evidence=True).invoke({"input": "The key?"})
    longer = [*KEYS, Document("z" * 900, metadata={"source": "long"})]
    with pytest.raises(ContextWindowExceeded):
        FullDocumentRetriever(documents=longer, llm=chat).invoke("The key?")
    ranked = FullDocumentRetriever(documents=longer, llm=chat, overflow="rank").invoke("The key?")
    assert [document.metadata["source"] for document in ranked] == ["red", "blue"]


def test_options_that_load_weights_are_refused_and_the_key_stays_secret(server, chat, monkeypatch):
    with pytest.raises(ValueError, match="device_map can't be set from here"):
        ChatSelfExtend(base_url=server.url, api_key="hunter2", device_map="auto")
    with pytest.raises(ValueError, match="unknown option max_group_size"):
        ChatSelfExtend(base_url=server.url, api_key="hunter2", max_group_size=8)
    assert "hunter2" not in dumps(chat)
    assert "hunter2" not in repr(chat)
    found = ChatSelfExtend(base_url=server.url, api_key="hunter2", at_once=2, window=500)
    assert found.llm.planner.extended_window == 500
    assert "at_once" in found.context_options
    monkeypatch.setenv("SELFEXTEND_RAG_API_KEY", "hunter2")
    assert pickle.loads(pickle.dumps(found)).invoke("The key is 4.").content == " 4"
