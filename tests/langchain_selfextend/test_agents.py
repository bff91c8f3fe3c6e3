"""LangChain's agents on top of the chat model."""

from __future__ import annotations

import asyncio

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import create_retriever_tool, tool

from langchain_selfextend import ChatSelfExtend, FullDocumentRetriever
from tests.langchain_selfextend.conftest import SMALL
from tests.langchain_selfextend.test_retrievers import RIVERS, STARS
from tests.llm.knowing import OTHERWISE, knowing_llm


@tool
def weigh(what: str) -> str:
    """Weigh a thing."""
    return f"{what}: 1 kg"


@tool
def ring() -> str:
    """Ring the bell."""
    return "it rings"


@pytest.fixture(scope="module")
def knowing():
    return ChatSelfExtend(llm=knowing_llm(), max_tokens=200)


def asked(question):
    return {"messages": [("user", question)]}


def test_an_agent_makes_parallel_calls_and_goes_on_from_their_results(knowing):
    agent = create_agent(knowing, [weigh], system_prompt="Use tools.")
    for result in (
        agent.invoke(asked("Weigh the cat and the dog.")),
        asyncio.run(agent.ainvoke(asked("Weigh the cat and the dog."))),
    ):
        _, question, *results, answer = result["messages"][-5:]
        assert isinstance(question, AIMessage)
        assert [message.content for message in results] == ["cat: 1 kg", "dog: 1 kg"]
        assert answer.text == OTHERWISE


def test_an_agent_streams_the_answer_in_pieces(knowing):
    agent = create_agent(knowing, [weigh])
    stream = agent.stream(asked("Weigh the cat and the dog."), stream_mode="messages")
    pieces = [message.text for message, _ in stream if not isinstance(message, ToolMessage)]
    assert "".join(pieces) == OTHERWISE
    assert len(pieces) > 10


def test_a_retriever_of_whole_documents_is_a_tool():
    reads = FullDocumentRetriever(documents=[RIVERS, STARS])
    found = create_retriever_tool(reads, "read", "Reads the documents.").invoke({"query": "What?"})
    assert found == f"{RIVERS.page_content}\n\n{STARS.page_content}"


def test_a_model_that_can_not_judge_when_to_call_makes_one_round_of_calls():
    model = ChatSelfExtend(**{**SMALL, "max_tokens": 60}, initial_tool_choice="any")
    messages = create_agent(model, [ring]).invoke(asked("What is said?"))["messages"]
    kinds = ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert [type(message).__name__ for message in messages] == kinds
    assert messages[2].content == "it rings"
