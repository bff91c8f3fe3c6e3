"""SelfExtendLLM and the engines of LlamaIndex on a server: only base_url differs."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("httpx2", reason="the extra remote is not installed")

from llama_index.core import Document
from llama_index.core.llms import ChatMessage

from llama_index.llms.selfextend import (
    FullDocumentQueryEngine,
    FullDocumentRetriever,
    SelfExtendLLM,
)
from selfextend_rag import ContextBudgetExceeded
from tests.llm.remote.fake import MODEL, FakeServer
from tests.tiny import byte_tokenizer

KEYS = [
    Document(text="The red key is 48213.", id_="red"),
    Document(text="The blue key is 77.", id_="blue"),
]


@pytest.fixture
def server():
    with FakeServer(window=1000) as server:
        yield server


@pytest.fixture
def llm(server):
    return SelfExtendLLM(
        base_url=server.url, tokenizer=byte_tokenizer(chat=True), max_new_tokens=20
    )


async def test_it_completes_and_chats(server, llm):
    assert (llm.model, llm.metadata.context_window) == (MODEL, 1000)
    assert llm.complete("The key is 5.").text == " 5"
    chat = [ChatMessage(role="user", content="The key is 6.")]
    assert llm.chat(chat).message.content == " 6"
    assert "".join(part.delta for part in llm.stream_chat(chat)) == " 6"
    assert (await llm.achat(chat)).message.content == " 6"
    assert llm.chat(chat).additional_kwargs["prompt_tokens"] > 10


async def test_engines_and_the_retriever_run_unchanged(llm):
    engine = FullDocumentQueryEngine.from_documents(KEYS, llm=llm)
    response = engine.query("The key?")
    assert str(response) == " 77"
    assert response.source_nodes == []
    assert response.metadata["plan"]["served_window"] == 1000
    assert str(await engine.aquery("The key?")) == " 77"
    talk = engine.as_chat_engine()
    assert str(talk.chat("The key?")) == "77"
    assert str(talk.chat("Again, the key is 8?")) == "8"
    assert len(FullDocumentRetriever(KEYS, llm=llm).retrieve("The key?")) == 2
    with pytest.raises(ContextBudgetExceeded, match="that the server takes"):
        FullDocumentQueryEngine.from_documents([Document(text="z" * 990)], llm=llm)


def test_options_that_load_weights_are_refused_and_one_by_name_is_pickled(server, llm):
    with pytest.raises(TypeError, match="dtype can't be set from here"):
        SelfExtendLLM(base_url=server.url, dtype="bfloat16")
    again = pickle.loads(pickle.dumps(SelfExtendLLM(base_url=server.url, at_once=2)))
    assert again.complete("The key is 3.").text == " 3"
