"""Programs in the form of LangChain's own tutorials run with nothing but the model changed.

Each test names the page whose form it has; the text here is ours. What they give the model is read
whole: it is looked for in the prompts that ran.
"""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, Literal

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    ModelRequest,
    SummarizationMiddleware,
    before_model,
    dynamic_prompt,
)
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.combine_documents.reduce import acollapse_docs, split_list_of_docs
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from langchain_selfextend import ChatSelfExtend, FullDocumentRetriever
from tests.langchain_selfextend.conftest import SMALL

PLACES = [
    Document("The harbour of Lund is open from May to October.", metadata={"source": "a"}),
    Document("The mill of Lund stopped in 1911. It is a museum.", metadata={"source": "b"}),
    Document("Letters are brought on Tuesdays, and parcels on Fridays.", metadata={"source": "c"}),
]
STORE = FullDocumentRetriever(documents=PLACES)


@pytest.fixture
def llm(chat):
    return ChatSelfExtend(**{**SMALL, "max_tokens": 12})


@pytest.fixture
def eager(chat):
    return ChatSelfExtend(**{**SMALL, "max_tokens": 80}, initial_tool_choice="any")


@pytest.fixture
def read(chat, monkeypatch):
    """The texts of the prompts that ran."""
    prompts, engines = [], [chat.llm.engine]
    answers = engines[0].answers

    def watched(asked, **options):
        prompts.extend(chat.llm.prompts.codec.decode(prompt.tokens) for prompt in asked)
        return answers(asked, **options)

    monkeypatch.setattr(engines[0], "answers", watched)
    return prompts


def has_all(text):
    return all(place.page_content in text for place in PLACES)


def test_a_summary_in_one_call(llm, read):
    """langchain docs/docs/tutorials/summarization.ipynb, "Stuff": one system message, streamed."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Say in short what this says:\n\n{context}")]
    )
    chain = create_stuff_documents_chain(llm, prompt)
    whole = chain.invoke({"context": PLACES})
    assert "".join(chain.stream({"context": PLACES})) == whole
    assert len(read) == 2
    assert all(map(has_all, read))


class Overall(TypedDict):
    contents: list[str]
    summaries: Annotated[list[str], operator.add]
    collapsed: list[Document]
    final: str


def test_a_summary_of_summaries_in_a_graph(llm, read):
    """langchain docs/docs/tutorials/summarization.ipynb, "Map-Reduce": tokens decide how often."""
    each = ChatPromptTemplate.from_messages([("system", "Say it in short:\n\n{context}")])
    several = ChatPromptTemplate([("human", "These are parts:\n{docs}\nSay them as one.")])

    def tokens(documents: list[Document]) -> int:
        return sum(llm.get_num_tokens(document.page_content) for document in documents)

    async def summarise(state: dict[str, str]) -> dict[str, Any]:
        return {"summaries": [(await llm.ainvoke(each.invoke(state["content"]))).content]}

    async def reduced(docs: list[Document], **_: Any) -> str:
        return (await llm.ainvoke(several.invoke({"docs": docs}))).content

    async def collapse(state: Overall) -> dict[str, Any]:
        parts = split_list_of_docs(state["collapsed"], tokens, most)
        return {"collapsed": [await acollapse_docs(part, reduced) for part in parts]}

    async def finish(state: Overall) -> dict[str, Any]:
        return {"final": await reduced(state["collapsed"])}

    def next_of(state: Overall) -> Literal["collapse", "finish"]:
        return "collapse" if tokens(state["collapsed"]) > most else "finish"

    most = 30
    graph = StateGraph(Overall)
    graph.add_node("summarise", summarise)
    graph.add_node("collect", lambda s: {"collapsed": [Document(x) for x in s["summaries"]]})
    graph.add_node("collapse", collapse)
    graph.add_node("finish", finish)
    graph.add_conditional_edges(
        START, lambda s: [Send("summarise", {"content": x}) for x in s["contents"]], ["summarise"]
    )
    graph.add_edge("summarise", "collect")
    graph.add_conditional_edges("collect", next_of)
    graph.add_conditional_edges("collapse", next_of)
    graph.add_edge("finish", END)
    given = {"contents": [place.page_content for place in PLACES]}
    found = asyncio.run(graph.compile().ainvoke(given, {"recursion_limit": 20}))
    assert len(found["summaries"]) == 3
    assert isinstance(found["final"], str)
    for place in PLACES:
        assert any(place.page_content in text for text in read)


class Building(BaseModel):
    """What is said of a building."""

    name: str | None = Field(default=None, description="What it is called", max_length=9)
    closed: int | None = Field(default=None, description="The year", ge=1000, le=2100)


class Buildings(BaseModel):
    """All buildings that are named."""

    found: list[Building] = Field(max_length=2)


def test_objects_are_extracted(read):
    """langchain docs/docs/tutorials/extraction.ipynb: optional fields, then several entities."""
    llm = ChatSelfExtend(**{**SMALL, "max_tokens": 120})
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Give what the text says; null for what it does not."), ("human", "{text}")]
    )
    for schema in (Building, Buildings):
        found = (prompt | llm.with_structured_output(schema=schema)).invoke(
            {"text": PLACES[1].page_content}
        )
        assert isinstance(found, schema)
        assert PLACES[1].page_content in read[-1]


def test_texts_are_classified(read):
    """langchain docs/docs/tutorials/classification.ipynb: fields with an enum."""

    class Kind(BaseModel):
        mood: str = Field(json_schema_extra={"enum": ["glad", "neutral", "sad"]})
        strength: int = Field(description="how strong", json_schema_extra={"enum": [1, 2, 3]})

    prompt = ChatPromptTemplate.from_template("Classify this passage.\n\nPassage:\n{input}\n")
    llm = ChatSelfExtend(**{**SMALL, "max_tokens": 60}).with_structured_output(Kind)
    found = (prompt | llm).invoke({"input": PLACES[2].page_content}).model_dump()
    assert found["mood"] in ("glad", "neutral", "sad")
    assert found["strength"] in (1, 2, 3)
    assert PLACES[2].page_content in read[-1]


@tool(response_format="content_and_artifact")
def retrieve(query: Literal["harbour", "mill"]) -> tuple[str, list[Document]]:
    """Find what is known of a place."""
    found = STORE.invoke(query)
    return "\n\n".join(f"Source: {x.metadata}\nContent: {x.page_content}" for x in found), found


def test_a_conversation_over_documents_is_a_graph_with_a_tool(eager, read):
    """langchain docs/docs/tutorials/qa_chat_history.ipynb: a query, the tool, an answer, memory."""

    def query_or_respond(state: MessagesState) -> dict[str, Any]:
        return {"messages": [eager.bind_tools([retrieve]).invoke(state["messages"])]}

    def generate(state: MessagesState) -> dict[str, Any]:
        prompt = ChatPromptTemplate.from_messages(
            [("system", "Answer from this:\n\n{context}"), MessagesPlaceholder("chat_history")]
        )
        said = [
            message
            for message in state["messages"]
            if message.type in ("human", "system") or (message.type == "ai" and message.content)
        ]
        context = state["messages"][-1].content
        answer = (prompt | eager).invoke({"context": context, "chat_history": said}, stop=["\n"])
        return {"messages": [answer]}

    graph = StateGraph(MessagesState)
    graph.add_node(query_or_respond)
    graph.add_node("tools", ToolNode([retrieve]))
    graph.add_node(generate)
    graph.set_entry_point("query_or_respond")
    graph.add_conditional_edges("query_or_respond", tools_condition, {END: END, "tools": "tools"})
    graph.add_edge("tools", "generate")
    graph.add_edge("generate", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "one"}}
    for question in ("When is the harbour open?", "And the mill?"):
        found = app.invoke({"messages": [("human", question)]}, config)["messages"]
        assert isinstance(found[-2], ToolMessage)
        assert found[-2].artifact == PLACES
        assert has_all(read[-1])
        assert question in read[-1]
    assert len(found) == 8


def test_an_agent_searches_and_answers(eager, read):
    """langchain-ai/docs src/oss/langchain/rag.mdx, "RAG agents": steps of an agent are streamed."""
    agent = create_agent(eager, [retrieve], system_prompt="Use the tool to find what is known.")
    steps = list(
        agent.stream(
            {"messages": [{"role": "user", "content": "When is the harbour open?"}]},
            stream_mode="values",
        )
    )
    kinds = [type(step["messages"][-1]).__name__ for step in steps]
    assert kinds == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert has_all(read[-1])


def test_what_was_retrieved_is_put_into_the_system_text(llm, read):
    """langchain-ai/docs src/oss/langchain/rag.mdx, "RAG chains": one call, by dynamic_prompt."""

    @dynamic_prompt
    def with_context(request: ModelRequest) -> str:
        found = STORE.invoke(request.state["messages"][-1].text)
        return "Answer from this:\n\n" + "\n\n".join(x.page_content for x in found)

    agent = create_agent(llm, tools=[], middleware=[with_context])
    agent.invoke({"messages": [("human", "When is the harbour open?")]})
    assert len(read) == 1
    assert has_all(read[0])


def test_old_messages_are_removed_or_summarised(llm, read):
    """langchain-ai/docs src/oss/langchain/short-term-memory.mdx: trimmed, and summarised."""

    @before_model
    def keep_few(state: AgentState, runtime: Any) -> dict[str, Any] | None:
        first, *rest = state["messages"]
        if len(rest) < 3:
            return None
        return {"messages": [RemoveMessage(id=REMOVE_ALL_MESSAGES), first, *rest[-3:]]}

    wide = ChatSelfExtend(**{**SMALL, "max_group_size": 16, "max_tokens": 12})  # its prompt is long
    summary = SummarizationMiddleware(wide, trigger=("tokens", 120), keep=("messages", 2))
    for middleware in (keep_few, summary):
        agent = create_agent(llm, tools=[], middleware=[middleware], checkpointer=InMemorySaver())
        config = {"configurable": {"thread_id": "one"}}
        for place in PLACES * 2:
            question = f"{place.page_content} Is that so?"
            found = agent.invoke({"messages": question}, config)
            assert isinstance(found["messages"][-1], AIMessage)
            assert question in read[-1]
        assert len(found["messages"]) < 12


def test_a_chat_history_is_trimmed_by_tokens(llm, read):
    """langchain docs/docs/tutorials/chatbot.ipynb: trim_messages with the model as its counter."""
    trimmer = trim_messages(
        max_tokens=65,
        strategy="last",
        token_counter=llm,
        include_system=True,
        allow_partial=False,
        start_on="human",
    )
    said = [SystemMessage("Be kind."), HumanMessage("I am Bo."), AIMessage("Hello, Bo!")]
    said += [HumanMessage("I like plums."), AIMessage("So do I."), HumanMessage("What is 2 + 2?")]
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("messages")])
    (trimmer | prompt.pipe(llm)).invoke(said)
    assert "Be kind." in read[-1]
    assert "What is 2 + 2?" in read[-1]
    assert "I am Bo." not in read[-1]
