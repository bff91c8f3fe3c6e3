"""Conversations about documents that were read, as the question that a reading is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def question_of(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the question, with what was said before it in the form that questions are asked in.

    Raises:
        ValueError: it holds something else, or does not begin and end with a question.
    """
    if isinstance(prompt, str):
        return prompt
    roles = [message["role"] for message in prompt]
    called = any("tool_calls" in message for message in prompt)
    if set(roles) - {"user", "assistant"} or roles[:1] + roles[-1:] != ["user"] * 2 or called:
        raise ValueError(
            "a conversation about documents that were read has questions of the user and answers, "
            f"a question first and last, and no tool calls; got {', '.join(roles) or 'nothing'}. "
            "What a system message would say belongs into the model's instruction"
        )
    text = ""
    for message in prompt:
        content = message["content"]
        if message["role"] == "assistant":
            text += f"\nAnswer: {content}"
        else:
            text += f"\n\nQuestion: {content}" if text else content
    return text
