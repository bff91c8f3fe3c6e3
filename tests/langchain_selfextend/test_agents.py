"""LangChain's agents on top of the chat model."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import create_retriever_tool, tool
from pydantic import BaseModel

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


class Weight(BaseModel):
    """What a thing weighs."""

    kilograms: Literal[1, 2]


def test_an_agent_has_tools_and_a_response_schema():
    model = ChatSelfExtend(**{**SMALL, "max_tokens": 120})
    agent = create_agent(model, tools=[ring], response_format=ProviderStrategy(Weight))
    found = agent.invoke(asked("What does it weigh?"), {"recursion_limit": 9})
    assert isinstance(found["structured_response"], Weight)


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
@pytest.mark.parametrize("tools", [[], [ring]])
def test_an_agents_answer_that_was_cut_off_says_so(strategy, tools):
    """It ended in an error about roles of messages, or about JSON that is not valid."""
    model = ChatSelfExtend(**{**SMALL, "max_tokens": 3})
    agent = create_agent(model, tools=tools, response_format=strategy(Weight))
    with pytest.raises(OutputParserException, match=r"cut off after 3 tokens.*max_tokens"):
        agent.invoke(asked("What does it weigh?"), {"recursion_limit": 9})


def test_a_first_call_that_was_cut_off_says_so():
    model = ChatSelfExtend(**{**SMALL, "max_tokens": 3}, initial_tool_choice="any")
    with pytest.raises(OutputParserException, match="cut off"):
        create_agent(model, [ring]).invoke(asked("What is said?"))
