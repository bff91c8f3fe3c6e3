"""LangChain's messages become the core's: every kind, and nothing lost without a word."""

from __future__ import annotations

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_selfextend.messages import core_messages, with_schema

CALL = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}


def test_every_kind_of_message_has_its_role():
    messages = [
        SystemMessage("be brief"),
        HumanMessage("1 + 1?", name="ann"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("2", tool_call_id="c1", name="add"),
        AIMessage("two"),
        ChatMessage("hm", role="user"),
        FunctionMessage("3", name="old"),
    ]
    assert core_messages(messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1 + 1?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "hm"},
        {"role": "tool", "content": "3", "name": "old", "tool_call_id": ""},
    ]


def test_text_parts_are_joined():
    parts = ["a", {"type": "text", "text": "b"}, {"type": "text-plain", "text": "c"}]
    assert core_messages([HumanMessage(parts)]) == [{"role": "user", "content": "abc"}]


def test_what_is_no_text_of_an_answer_is_not_repeated_to_the_model():
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text", "text": "Well."},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
    ]
    (message,) = core_messages([AIMessage(parts, tool_calls=[CALL])])
    assert message["content"] == "Well."
    assert len(message["tool_calls"]) == 1


def test_messages_of_one_role_in_a_row_become_one():
    messages = [
        SystemMessage("a"),
        SystemMessage("b"),
        HumanMessage("c"),
        HumanMessage("d"),
        AIMessage("e"),
        AIMessage("f"),
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("1", tool_call_id="c1"),
        ToolMessage("2", tool_call_id="c2"),
    ]
    converted = [(message["role"], message["content"]) for message in core_messages(messages)]
    assert converted == [
        ("system", "a\n\nb"),
        ("user", "c\n\nd"),
        ("assistant", "e\n\nf"),
        ("assistant", ""),
        ("tool", "1"),
        ("tool", "2"),
    ]


@pytest.mark.parametrize("kind", ["video", "audio", "file", "input_audio"])
def test_what_is_no_text_is_refused_by_its_name(chat, kind):
    message = HumanMessage([{"type": "text", "text": "What is this?"}, {"type": kind, kind: "x"}])
    with pytest.raises(ValueError, match=f"human message holds a part of type '{kind}'.*text"):
        chat.invoke([message])


PIXEL = "iVBORw0KGgo="
FORMS = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    {"type": "image_url", "image_url": f"data:image/png;base64,{PIXEL}"},
    {"type": "image", "base64": PIXEL, "mime_type": "image/png"},
    {"type": "image", "source_type": "base64", "data": PIXEL, "mime_type": "image/png"},
    {"type": "image", "url": f"data:image/png;base64,{PIXEL}"},
]


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_all_forms_of_langchain_reach_the_core_in_their_place(form):
    message = HumanMessage([{"type": "text", "text": "See"}, form, {"type": "text", "text": "!"}])
    (said,) = core_messages([message])
    assert said["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "text", "text": "!"},
    ]
    merged, asked = core_messages([message, HumanMessage("Who?")]), {"type": "object"}
    texts = [part.get("text") for part in merged[0]["content"]]
    assert texts == ["See", None, "!", "\n\n", "Who?"]
    assert "this schema" in with_schema(merged, asked)[0]["content"][-1]["text"]


def test_a_model_of_text_refuses_pictures_with_what_can_be_done(chat):
    with pytest.raises(ValueError, match="text alone is read here; load a vision model"):
        chat.invoke([HumanMessage([FORMS[0]])])
    assert chat.profile["image_inputs"] is False


def test_a_picture_of_a_service_is_refused_with_what_it_has():
    message = HumanMessage([{"type": "image", "file_id": "file-1"}])
    with pytest.raises(ValueError, match=r"a picture is .*got one with file_id, type"):
        core_messages([message])


def test_a_tools_image_is_refused():
    message = ToolMessage([{"type": "image", "base64": "x"}], tool_call_id="c1")
    with pytest.raises(ValueError, match="a tool message holds a part of type 'image'"):
        core_messages([message])


def test_a_kind_of_message_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"must be a system, human.* got 'remove'"):
        core_messages([RemoveMessage(id="1")])


def test_a_schema_comes_last_in_what_the_user_says():
    asked_for = 'Answer with a JSON object of this schema: {"type": "object"}'
    said = core_messages([SystemMessage("S"), HumanMessage("How?")])
    assert with_schema(said, {"type": "object"}) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": f"How?\n\n{asked_for}"},
    ]
    assert said[1]["content"] == "How?"
    result = core_messages([ToolMessage("2", tool_call_id="c1")])
    asked = with_schema(result, {"type": "object"})
    assert asked == [*result, {"role": "user", "content": asked_for}]
