"""Answers in the forms of OpenAI's API, whole and in chunks."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from typing import Protocol

from selfextend_rag.engine import Usage
from selfextend_rag.llm import Answer

JsonObject = dict[str, object]


class Reply(Protocol):
    """Writes one answer; each method returns JSON values."""

    def first(self) -> JsonObject | None:
        """Return what a stream begins with; None for nothing."""

    def part(self, text: str) -> JsonObject:
        """Return a chunk with text."""

    def last(self, answer: Answer) -> JsonObject:
        """Return the chunk that says how the answer ended, with all that is known then alone."""

    def usage(self, usage: Usage) -> JsonObject:
        """Return the chunk with the usage."""

    def whole(self, answer: Answer) -> JsonObject:
        """Return the answer in one object."""


class ChatReply:
    """Replies of ``/v1/chat/completions``."""

    def __init__(self, model: str) -> None:
        self._head = _head("chatcmpl", model)

    def first(self) -> JsonObject:
        """Return the chunk with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def part(self, text: str) -> JsonObject:
        """Return a chunk with text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> JsonObject:
        """Return the chunk with calls, evidence and the reason of the end."""
        calls = [{"index": i, **call} for i, call in enumerate(_calls(answer))]
        return self._chunk({"tool_calls": calls} if calls else {}, answer)

    def usage(self, usage: Usage) -> JsonObject:
        """Return the chunk with the usage, and no choice."""
        head = {**self._head, "object": "chat.completion.chunk"}
        return {**head, "choices": [], "usage": usage_of(usage)}

    def whole(self, answer: Answer) -> JsonObject:
        """Return a chat completion."""
        calls = _calls(answer)
        message: JsonObject = {
            "role": "assistant",
            "content": answer.text if answer.text or not calls else None,
            "refusal": None,
            **({"tool_calls": calls} if calls else {}),
        }
        choice = {"index": 0, "message": message, **_ending(answer)}
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": usage_of(answer.usage)}

    def _chunk(self, delta: JsonObject, answer: Answer | None = None) -> JsonObject:
        ending = {"finish_reason": None} if answer is None else _ending(answer)
        choice = {"index": 0, "delta": delta, "logprobs": None, **ending}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


class TextReply:
    """Replies of ``/v1/completions``."""

    def __init__(self, model: str) -> None:
        self._head = {**_head("cmpl", model), "object": "text_completion"}

    def first(self) -> None:
        """Return nothing: a stream begins with text."""

    def part(self, text: str) -> JsonObject:
        """Return a chunk with text."""
        return self._object(text, {"finish_reason": None})

    def last(self, answer: Answer) -> JsonObject:
        """Return the chunk with the reason of the end."""
        return self._object("", _ending(answer))

    def usage(self, usage: Usage) -> JsonObject:
        """Return the chunk with the usage, and no choice."""
        return {**self._head, "choices": [], "usage": usage_of(usage)}

    def whole(self, answer: Answer) -> JsonObject:
        """Return a completion."""
        return {**self._object(answer.text, _ending(answer)), "usage": usage_of(answer.usage)}

    def _object(self, text: str, ending: JsonObject) -> JsonObject:
        choice = {"index": 0, "text": text, "logprobs": None, **ending}
        return {**self._head, "choices": [choice]}


def having_read(answer: Answer, tokens: int) -> Answer:
    """Return an answer for which so many tokens of documents were read; they count as not cached.

    They are a reading by the time that the question is put to it.
    """
    if not tokens:
        return answer
    fresh = max(0, answer.usage.cached_tokens - tokens)
    return replace(answer, usage=replace(answer.usage, cached_tokens=fresh))


def usage_of(usage: Usage) -> JsonObject:
    """Return token counts, with those that had been read before as cached."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _head(prefix: str, model: str) -> JsonObject:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _ending(answer: Answer) -> JsonObject:
    """Return how an answer ended and, where it rests on documents, the passages."""
    ending: JsonObject = {"finish_reason": answer.finish_reason}
    if answer.unfinished_call:
        ending["unfinished_call"] = answer.unfinished_call
    if answer.evidence:
        ending["evidence"] = [passage.to_dict() for passage in answer.evidence]
    return ending


def _calls(answer: Answer) -> list[JsonObject]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in answer.tool_calls
    ]
