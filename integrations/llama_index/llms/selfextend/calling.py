"""Function calling in LlamaIndex's interface, on the core's constrained tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool


class ToolCalling(FunctionCallingLLM):
    """What a model needs for ``chat_with_tools``, ``predict_and_call`` and agents.

    Calls are always valid for their tool's schema: decoding is held to it.
    """

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of ``chat`` for a conversation with tools.

        Args:
            tools: what may be called.
            user_msg: what the user says last; may be in ``chat_history`` already.
            chat_history: what was said before.
            verbose: of the framework; nothing is printed here.
            allow_parallel_tool_calls: an answer may have several calls.
            tool_required: the answer must be a call.
            tool_choice: ``"auto"``, ``"none"``, ``"required"`` or the name of a tool; decides in
                place of ``tool_required``.
            kwargs: more for ``chat``.
        """
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls that a response asks for.

        Raises:
            ValueError: there are none, and that is an error.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            said = response.message.content or ""
            reason = (response.raw or {}).get("finish_reason")
            raise ValueError(
                f"expected at least one tool call, got none but the text {said[:200]!r} "
                f"(finish_reason {reason!r}); ask with tool_required=True"
                + (", or allow more max_tokens" if reason == "length" else "")
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
            )
            for call in calls
        ]
