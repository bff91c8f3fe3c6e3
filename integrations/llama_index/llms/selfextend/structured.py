"""Answers that are Pydantic objects or calls of tools: how they are asked for, and read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher

from llama_index.llms.selfextend.messages import JsonObject
from selfextend_rag import frameworks

_OF_PROGRAMS = ("tool_choice", "tool_required", "allow_parallel_tool_calls")
"""Options that the framework's own programs pass; a schema leaves nothing to choose."""

_dispatcher = get_dispatcher(__name__)


def report_start(output_cls: type[BaseModel], prompt: PromptTemplate, values: JsonObject) -> None:
    """Report to the framework that an object is asked for."""
    _dispatcher.event(
        LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=values)
    )


def report_end(found: Model) -> Model:
    """Report an object to the framework, and return it."""
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found


def object_request(
    messages: Sequence[ChatMessage], output_cls: type[BaseModel], given: JsonObject | None
) -> tuple[list[ChatMessage], JsonObject]:
    """Return messages that end with a class's JSON schema, and options that constrain to it.

    The framework's own parser would write every brace of the schema twice.
    """
    schema = output_cls.model_json_schema()
    copies = [message.model_copy(deep=True) for message in messages]  # the prompt keeps its own
    copies[-1].blocks.append(TextBlock(text=frameworks.schema_request(schema)))
    options = {name: value for name, value in (given or {}).items() if name not in _OF_PROGRAMS}
    return copies, {**options, "json_schema": schema}


def object_of(output_cls: type[Model], response: ChatResponse | None) -> Model:
    """Return the object that a whole answer is.

    Raises:
        ValueError: the answer was cut off; the message says so.
    """
    raw: Mapping[str, object] = (response.raw if response is not None else None) or {}
    text = (response.message.content if response is not None else None) or ""
    if raw.get("finish_reason") != "stop":
        raise ValueError(
            f"the answer for {output_cls.__name__} was cut off "
            f"(finish_reason {raw.get('finish_reason')!r}) after {text[-80:]!r}; "
            "allow more with max_new_tokens of the model, or max_tokens in llm_kwargs"
        )
    return output_cls.model_validate_json(text)


def growing(
    output_cls: type[Model], responses: Generator[ChatResponse, None, None]
) -> Generator[Model | FlexibleModel, None, None]:
    """Yield what is known of an object after each part of an answer, and in the end the object."""
    partial, last = None, None
    for last in responses:
        partial = process_streaming_content_incremental(last, output_cls, partial)
        yield partial
    yield object_of(output_cls, last)


async def agrowing(
    output_cls: type[Model], responses: AsyncGenerator[ChatResponse, None]
) -> AsyncGenerator[Model | FlexibleModel, None]:
    """Do as ``growing``, with the event loop free."""
    partial, last = None, None
    async for last in responses:
        partial = process_streaming_content_incremental(last, output_cls, partial)
        yield partial
    yield object_of(output_cls, last)


def calls_of(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """Return the calls of tools that an answer asks for.

    Raises:
        ValueError: there are none, and one is required.
    """
    calls = [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
        )
        for block in response.message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if not calls and required:
        said = response.message.content or ""
        reason = (response.raw or {}).get("finish_reason")
        raise ValueError(
            f"expected at least one tool call, got none but the text {said[:200]!r} "
            f"(finish_reason {reason!r}); ask with tool_required=True"
            + (", or allow more max_tokens" if reason == "length" else "")
        )
    return calls


class AnswersInObjects(FunctionCallingLLM):
    """A model that writes objects by their schema, and asks for calls of tools in its own way."""

    @_dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: JsonObject | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Return an object of a Pydantic class.

        Args:
            output_cls: the class; the prompt ends with its JSON schema, and the answer obeys it.
            prompt: what to say.
            llm_kwargs: options of the answer.
            prompt_args: fill the prompt.

        Raises:
            ValueError: the answer was cut off; the message says so.
        """
        if self._by_schema():
            report_start(output_cls, prompt, prompt_args)
            messages, options = self._asking_for(output_cls, prompt, llm_kwargs, prompt_args)
            return report_end(object_of(output_cls, self.chat(messages, **options)))
        found: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        return found

    @_dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: JsonObject | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Do as ``structured_predict``, with the event loop free."""
        if self._by_schema():
            report_start(output_cls, prompt, prompt_args)
            messages, options = self._asking_for(output_cls, prompt, llm_kwargs, prompt_args)
            return report_end(object_of(output_cls, await self.achat(messages, **options)))
        theirs = super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        found: Model = await theirs
        return found

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: JsonObject | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None, None]:
        if not self._by_schema():
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, options = self._asking_for(output_cls, prompt, llm_kwargs, prompt_args)
        return growing(output_cls, self.stream_chat(messages, **options))

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: JsonObject | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | list[Model] | FlexibleModel | list[FlexibleModel], None]:
        if not self._by_schema():
            return await super()._structured_astream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
        messages, options = self._asking_for(output_cls, prompt, llm_kwargs, prompt_args)
        return agrowing(output_cls, await self.astream_chat(messages, **options))

    def _by_schema(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _asking_for(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: JsonObject | None,
        values: JsonObject,
    ) -> tuple[list[ChatMessage], JsonObject]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **values))
        return object_request(messages, output_cls, llm_kwargs)

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> JsonObject:
        """Return the arguments of ``chat``; ``tool_choice`` decides in place of ``tool_required``.

        It is ``"auto"``, ``"none"``, ``"required"`` or the name of a tool.
        """
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or ()), *(() if user_msg is None else (user_msg,))],
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
        return calls_of(response, required=error_on_no_tool_call)
