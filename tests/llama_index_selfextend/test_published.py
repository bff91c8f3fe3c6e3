"""Programs in the form of LlamaIndex's published notebooks, with the model swapped for this one.

Of the repository run-llama/llama_index, under docs/examples: llm/huggingface (the starter with a
local model), query_engine/custom_query_engine, chat_engine/chat_engine_context,
customization/streaming/SimpleIndexDemo-streaming, structured_outputs/structured_outputs and
agent/agent_workflow_basic. Each has to run, and no text may be cut on its way to the model.
"""

from __future__ import annotations

import pytest
from llama_index.core import (
    Document,
    Settings,
    SimpleDirectoryReader,
    SummaryIndex,
    VectorStoreIndex,
    get_response_synthesizer,
)
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.retrievers import BaseRetriever
from pydantic import BaseModel, Field
from workflows import Context
from workflows.context.serializers import JsonSerializer

from llama_index.llms.selfextend import FullDocumentRetriever, SelfExtendLLM, use_full_documents
from tests.llm.knowing import knowing_llm

KEY = "The pass key is 48213."
FILLER = "And the earth was without form, and void; and darkness was upon the deep. " * 28
ESSAY = f"{FILLER}\n{KEY}\n{FILLER}".strip()
QUESTION = "What is the pass key?"


@pytest.fixture
def llm(bundled):
    return SelfExtendLLM(bundled, max_new_tokens=24)


@pytest.fixture
def read(monkeypatch):
    """All that is put to the model, as text."""
    from selfextend_rag.text.prompts import PromptBuilder

    seen, built = [], PromptBuilder.prompt

    def watched(self, prompt, tools=()):
        whole = prompt if isinstance(prompt, str) else "\n".join(str(m["content"]) for m in prompt)
        seen.append(whole)
        return built(self, prompt, tools)

    monkeypatch.setattr(PromptBuilder, "prompt", watched)
    return seen


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "essay.txt").write_text(ESSAY)
    return tmp_path


def test_starter_with_a_local_model(llm, read, folder):
    Settings.embed_model = MockEmbedding(embed_dim=8)
    use_full_documents(llm)
    index = VectorStoreIndex.from_documents(SimpleDirectoryReader(str(folder)).load_data())
    response = index.as_query_engine().query(QUESTION)
    assert "48213" in str(response)
    assert len(read) == 1
    assert ESSAY in read[0]


class RAGQueryEngine(CustomQueryEngine):
    retriever: BaseRetriever
    response_synthesizer: BaseSynthesizer

    def custom_query(self, query_str: str):
        nodes = self.retriever.retrieve(query_str)
        return self.response_synthesizer.synthesize(query_str, nodes)


class RAGStringQueryEngine(CustomQueryEngine):
    retriever: BaseRetriever
    llm: SelfExtendLLM
    qa_prompt: PromptTemplate

    def custom_query(self, query_str: str):
        nodes = self.retriever.retrieve(query_str)
        context = "\n\n".join(found.node.get_content() for found in nodes)
        asked = self.qa_prompt.format(context_str=context, query_str=query_str)
        return str(self.llm.complete(asked))


def test_custom_query_engines(llm, read):
    use_full_documents(llm)
    retriever = FullDocumentRetriever([Document(text=ESSAY)], llm=llm)
    synthesizer = get_response_synthesizer(response_mode="compact")
    first = RAGQueryEngine(retriever=retriever, response_synthesizer=synthesizer).query(QUESTION)
    template = PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:")
    read.clear()
    second = RAGStringQueryEngine(retriever=retriever, llm=llm, qa_prompt=template).query(QUESTION)
    assert first.source_nodes[0].node.get_content() == ESSAY
    assert str(second)
    assert all(ESSAY in text for text in read)


def test_context_chat_engine_with_a_memory_and_a_system_prompt(llm, read):
    Settings.embed_model = MockEmbedding(embed_dim=8)
    use_full_documents(llm)
    index = VectorStoreIndex.from_documents([Document(text=ESSAY)])
    chat = index.as_chat_engine(
        chat_mode="context",
        memory=ChatMemoryBuffer.from_defaults(token_limit=1500),
        system_prompt="You talk about an essay.",
    )
    chat.chat(QUESTION)
    streamed = chat.stream_chat("And again?")
    parts = list(streamed.response_gen)
    assert "".join(parts) == streamed.response
    assert len(chat.chat_history) == 4
    assert all("You talk about an essay." in text and ESSAY in text for text in read)
    chat.reset()
    assert chat.chat_history == []


def test_streaming_from_an_index(llm, read):
    use_full_documents(llm)
    engine = SummaryIndex.from_documents([Document(text=ESSAY)]).as_query_engine(
        streaming=True, similarity_top_k=1
    )
    response = engine.query(QUESTION)
    assert "48213" in "".join(response.response_gen)
    assert ESSAY in read[0]


class Song(BaseModel):
    """A song."""

    title: str = Field(max_length=8)
    length_seconds: int = Field(ge=0, le=999)


class Album(BaseModel):
    """An album."""

    name: str = Field(max_length=8)
    songs: list[Song] = Field(max_length=2)


async def test_structured_outputs_of_a_model(bundled):
    llm = SelfExtendLLM(bundled, max_new_tokens=200)
    structured = llm.as_structured_llm(output_cls=Album)
    asked = ChatMessage.from_str("Generate an example album from The Shining")
    made = [structured.chat([asked]).raw, (await structured.achat([asked])).raw]
    made.append([part.raw for part in structured.stream_chat([asked])][-1])
    made.append([part.raw async for part in await structured.astream_chat([asked])][-1])
    template = ChatPromptTemplate(
        message_templates=[ChatMessage.from_str("An album from {movie}", role="user")]
    )
    made.append(llm.structured_predict(Album, template, movie="Lord of the Rings"))
    assert all(isinstance(album, Album) for album in made)
    assert made[0] == made[1] == made[2] == made[3]


async def test_function_agents_with_streams_and_a_context_that_is_stored():
    async def search_web(query: str) -> str:
        """Useful for using the web to answer questions."""
        return f"found {query}"

    llm = SelfExtendLLM(knowing_llm(), max_new_tokens=120)
    agent = FunctionAgent(tools=[search_web], llm=llm, system_prompt="You search the web.")
    context = Context(agent)
    first = await agent.run(user_msg="What is the weather in San Francisco?", ctx=context)
    stored = context.to_dict(serializer=JsonSerializer())
    restored = Context.from_dict(agent, stored, serializer=JsonSerializer())
    second = await agent.run(user_msg="And now?", ctx=restored)
    handler = AgentWorkflow(agents=[agent]).run(user_msg="What is the weather in Saskatoon?")
    said = [event.delta async for event in handler.stream_events() if type(event) is AgentStream]
    assert str(first)
    assert str(second)
    assert str(await handler) in "".join(said)
