"""Tools: asked for through the framework's interface, constrained, and used by agents."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool

from llama_index.llms.selfextend import SelfExtendLLM


def add(a: bool, b: bool) -> str:
    """Add."""
    return f"{a + b}"


def stop(reason: bool) -> str:
    """Stop."""
    return "stopped"


ADD, STOP = FunctionTool.from_defaults(add), FunctionTool.from_defaults(stop)


@pytest.fixture(scope="module")
def llm(bundled):
    return SelfExtendLLM(bundled, max_new_tokens=60)


def test_a_required_call_is_a_valid_one(llm):
    response = llm.chat_with_tools([ADD], user_msg="Add 1.", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "add"
    assert type(call.tool_kwargs["a"]) is bool
    assert type(call.tool_kwargs["b"]) is bool
    assert call.tool_id
    assert response.raw["finish_reason"] == "tool_calls"


def test_all_forms_make_the_same_call(llm):
    given = {"tools": [ADD, STOP], "user_msg": "Add 1.", "tool_choice": "add"}

    async def awaited():
        whole = await llm.achat_with_tools(**given)
        stream = await llm.astream_chat_with_tools(**given)
        return [whole, [piece async for piece in stream][-1]]

    *_, streamed = llm.stream_chat_with_tools(**given)
    responses = [llm.chat_with_tools(**given), streamed, *asyncio.run(awaited())]
    calls = [llm.get_tool_calls_from_response(response)[0] for response in responses]
    assert len(calls) == 4
    assert {call.tool_name for call in calls} == {"add"}
    assert len({str(call.tool_kwargs) for call in calls}) == 1


def test_the_call_is_made(llm):
    for response in (
        llm.predict_and_call([STOP], user_msg="Stop.", tool_required=True),
        asyncio.run(llm.apredict_and_call([STOP], user_msg="Stop.", tool_required=True)),
    ):
        assert response.response == "stopped"
        assert response.sources[0].tool_name == "stop"


def test_no_call_is_an_error_that_says_what_came(llm):
    response = llm.chat([ChatMessage(role="user", content="Hi")], max_tokens=2)
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"got none but the text .*tool_required=True, or allow"):
        llm.get_tool_calls_from_response(response)


def test_calls_and_results_go_back_into_the_conversation(llm):
    asked = llm.chat_with_tools([STOP], user_msg="Stop.", tool_required=True).message
    (call,) = [block for block in asked.blocks if isinstance(block, ToolCallBlock)]
    result = ChatMessage(
        role="tool", content="stopped", additional_kwargs={"tool_call_id": call.tool_call_id}
    )
    history = [ChatMessage(role="user", content="Stop."), asked, result]
    response = llm.chat_with_tools([STOP], chat_history=history, tool_choice="none", max_tokens=4)
    assert response.raw["usage"]["completion_tokens"] > 0
    assert not llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)


@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_takes_a_step_with_it(llm, streaming):
    """The tool's result ends the run: whether to go on calling is the model's judgement."""
    ends = FunctionTool.from_defaults(stop, return_direct=True)
    agent = FunctionAgent(tools=[ends], llm=llm, streaming=streaming, initial_tool_choice="stop")

    async def main():
        handler = agent.run("Stop.")
        seen = [type(event).__name__ async for event in handler.stream_events()]
        return seen, await handler

    seen, output = asyncio.run(main())
    assert "ToolCallResult" in seen
    assert ("AgentStream" in seen) is streaming
    assert str(output) == "stopped"
