"""LlamaIndex's messages as the core's, and what has no place in a text prompt."""

from __future__ import annotations

import base64
import io

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index.llms.selfextend.messages import core_messages

PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(24)


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),
    ],
)
def test_every_role_of_the_framework_has_one_of_the_core(role, expected):
    assert core_messages([ChatMessage(role=role, content="x")]) == [
        {"role": expected, "content": "x"}
    ]


def test_text_blocks_are_joined_as_the_framework_joins_them():
    message = ChatMessage(blocks=[TextBlock(text="one"), TextBlock(text="two")])
    assert core_messages([message])[0]["content"] == message.content == "one\ntwo"


def test_calls_and_their_results_keep_their_ids():
    asked = ChatMessage(
        role="assistant",
        blocks=[ToolCallBlock(tool_call_id="7", tool_name="add", tool_kwargs={"a": 1})],
    )
    result = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "7"})
    call = {"id": "7", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert core_messages([asked, result]) == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "7"},
    ]


def test_calls_that_another_integration_wrote_beside_the_blocks_are_kept():
    call = {"id": "7", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]})
    assert core_messages([message])[0]["tool_calls"] == [call]


def test_thoughts_and_cache_hints_are_no_part_of_a_prompt():
    blocks = [
        ThinkingBlock(content="hm"),
        TextBlock(text="x"),
        CachePoint(cache_control=CacheControl(type="ephemeral")),
    ]
    assert core_messages([ChatMessage(blocks=blocks)])[0]["content"] == "x"


def test_pictures_reach_the_core_in_their_place(tmp_path):
    path = tmp_path / "pixel.png"
    path.write_bytes(PIXEL)
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    for image in (
        ImageBlock(image=PIXEL),
        ImageBlock(image=io.BytesIO(PIXEL)),
        ImageBlock(path=path),
    ):
        blocks = [TextBlock(text="See"), image, TextBlock(text="Well?")]
        assert core_messages([ChatMessage(blocks=blocks)])[0]["content"] == [
            {"type": "text", "text": "See"},
            {"type": "image", "image": PIXEL},
            {"type": "text", "text": "\nWell?"},
        ]
    (said,) = core_messages([ChatMessage(blocks=[ImageBlock(url=url)])])
    assert said["content"] == [{"type": "image_url", "image_url": {"url": url}}]


def test_a_picture_is_refused_by_a_model_of_text_with_what_can_be_done(chat_llm):
    message = ChatMessage(blocks=[TextBlock(text="What is it?"), ImageBlock(image=PIXEL)])
    with pytest.raises(ValueError, match="text alone is read here; load a vision model"):
        chat_llm.chat([message])
