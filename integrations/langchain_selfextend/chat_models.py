"""The chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import (
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr

from langchain_selfextend.messages import JsonObject, core_messages, last_chunk, with_schema
from langchain_selfextend.settings import (
    Options,
    Profile,
    SelfExtendSettings,
    overflow_of_the_framework,
)
from langchain_selfextend.structured import (
    OutputSchema,
    ToolSchema,
    converted,
    cut_off,
    json_schema_of,
    parsed,
    parser_of,
    schema_of_response_format,
    tool_of,
    unless_called,
)
from selfextend_rag import Answer, BaseLLM, TextStream

_STRUCTURE = ("tools", "tool_choice", "parallel_tool_calls", "json_schema")


class Source(Protocol):
    """What answers a conversation, as `LongContextLLM` does."""

    def stream(self, prompt: Sequence[Mapping[str, Any]], **options: Any) -> TextStream:
        """Return the answer as it comes."""

    async def astream(self, prompt: Sequence[Mapping[str, Any]], **options: Any) -> TextStream:
        """Do as ``stream``, with the event loop free."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: what is asked, how, and what the answer has to hold."""

    asked: Source | BaseLLM
    arguments: Options
    model: str
    must: str  # what may not be cut off: a call, an object, or nothing

    def end(self, answer: Answer) -> AIMessageChunk:
        """Return the end of a streamed answer.

        Raises:
            OutputParserException: what it must hold was cut off.
        """
        if self.must and answer.finish_reason == "length" and not answer.tool_calls:
            begun = answer.unfinished_call or answer.text
            raise cut_off(self.must, answer.usage.completion_tokens, begun)
        return last_chunk(answer, self.model)


class ChatSelfExtend(SelfExtendSettings, BaseChatModel):
    """A local chat model whose context window is stretched to what a prompt needs.

    Setup:
        ``pip install 'selfextend-rag[langchain]'``. Any causal language model of transformers that
        ``selfextend-rag support`` accepts; ``ChatSelfExtend.bundled()`` needs no download.

    Main arguments:
        model: a hub id, a folder, ``"bundled"``, or a model of transformers with its ``tokenizer``.
        llm: instead, a `LongContextLLM` or `RemoteLLM`.
        base_url, api_key: instead, a server of OpenAI's API; ``model`` is then the name there.
        dtype, device_map, full_attention, weight_bits, quantization_config, model_options: how the
            weights are loaded.
        max_group_size, neighbor_window, pretraining_window, ...: options of `LongContextLLM`.
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop, timeout: how
            it answers; all but ``timeout`` may be given per call too.

    Construct:
        .. code-block:: python

            from langchain_selfextend import ChatSelfExtend

            chat = ChatSelfExtend(model="bundled", max_tokens=20)

    Invoke:
        .. code-block:: python

            handbook = ("system", "The pass key is 48213.")
            message = chat.invoke([handbook, ("human", "What is the pass key?")])
            message.content, message.usage_metadata, message.response_metadata["finish_reason"]

    Stream:
        .. code-block:: python

            for chunk in chat.stream([handbook, ("human", "What is the pass key?")]):
                print(chunk.text, end="")

    Tools and structured answers are constrained while they are generated, so they are always valid:
    ``bind_tools``, ``with_structured_output``. A call that must be made, or an object that
    ``response_format`` asks for, is an ``OutputParserException`` where ``max_tokens`` cut it off. A
    prompt that can't fit is refused before the model
    runs, with `ContextWindowExceeded`, which is LangChain's ``ContextOverflowError``.
    """

    initial_tool_choice: str | None = None
    """What ``bind_tools`` takes when it names no ``tool_choice``, up to the result of a call: such
    as ``"any"`` for a small model that can't judge when to call. After a result, it may choose."""

    _source: Source | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "selfextend"

    def _resolve_model_profile(self) -> ModelProfile | None:
        answer = self.max_tokens or self.llm.budget.max_new_tokens
        found = ModelProfile(
            name=self.model,
            max_input_tokens=self.llm.planner.extended_window - answer,
            max_output_tokens=answer,
            text_inputs=True,
            text_outputs=True,
            image_inputs=self.llm.reads_pictures,
            audio_inputs=False,
            video_inputs=False,
            tool_calling=True,
            tool_choice=True,
        )
        return cast(ModelProfile, Profile(found))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[ToolSchema] | None = None
    ) -> int:
        """Return the tokens of the whole prompt that these messages, and tools, make."""
        described = [converted(tool) for tool in tools or ()]
        return self.llm.count_tokens(core_messages(messages), tools=described)

    def over(self, source: Source) -> Self:
        """Return this model with what it is asked answered by a source of its own.

        Callbacks hear of its answers as of all others; none of them is kept in a cache.
        """
        bound = self.model_copy(update={"cache": False})
        bound._source = source
        return bound

    def _call(self, messages: list[BaseMessage], stop: list[str] | None, call: Options) -> _Call:
        """Return what answers a call, and how."""
        options = dict(call)
        options.pop("stream", None)
        name = options.pop("model", None)
        whole, must = options.pop("whole", True), ""
        structure = {name: options.pop(name) for name in _STRUCTURE if name in options}
        if (response_format := options.pop("response_format", None)) is not None:
            structure["json_schema"] = schema_of_response_format(response_format)
            must = "object"
        if structure.get("tools"):
            structure |= self._choice(messages, structure)
            must = must if structure["tool_choice"] in ("auto", "none") else "call"
        prompt = core_messages(messages, merge=self._source is None)
        if options.pop("schema_in_prompt", False):
            prompt = with_schema(prompt, structure["json_schema"])
        arguments = {
            "prompt": prompt,
            "cancelled": self.deadline(),
            **self.call_options(stop, options),
            **{name: value for name, value in structure.items() if value is not None},
        }
        asked = self._source or self._llm_named(name)
        return _Call(asked, arguments, name or self.model, must if whole else "")

    def _choice(self, messages: Sequence[BaseMessage], structure: Options) -> Options:
        """Return what a call may choose among its tools, where ``bind_tools`` left it open."""
        choice = structure.get("tool_choice")
        if choice is None:
            answers_a_call = isinstance(messages[-1], ToolMessage)
            choice = "auto" if answers_a_call else self.initial_tool_choice or "auto"
        parallel = structure.get("parallel_tool_calls")
        return {
            "tool_choice": choice,
            "parallel_tool_calls": choice == "auto" if parallel is None else parallel,
        }

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        with overflow_of_the_framework():
            answering = call.asked.stream(**call.arguments)
        with answering:
            for part in answering:
                yield ChatGenerationChunk(message=AIMessageChunk(content=part))
            answer = self.in_time(answering.answer)
        yield ChatGenerationChunk(message=call.end(answer))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        with overflow_of_the_framework():
            answering = await call.asked.astream(**call.arguments)
        async with answering:
            async for part in answering:
                yield ChatGenerationChunk(message=AIMessageChunk(content=part))
            answer = self.in_time(await answering.aanswer())
        yield ChatGenerationChunk(message=call.end(answer))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    def bind_tools(
        self,
        tools: Sequence[ToolSchema],
        *,
        tool_choice: str | bool | JsonObject | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may, or must, call.

        Args:
            tools: in any form that LangChain knows.
            tool_choice: ``"auto"`` lets the model choose, ``"any"`` (``"required"``, True) makes it
                call one, ``"none"`` (False) none; a name, or OpenAI's dictionary of one, that one.
                By default ``initial_tool_choice`` of the model, or ``"auto"``.
            parallel_tool_calls: whether an answer may hold more than one call; by default it may
                where the model chooses, and a call that it must make is one.
            strict: accepted and not needed: arguments always obey the schema of their tool.
            kwargs: options of the call.

        Raises:
            ValueError: ``tool_choice`` names no tool that is there.
        """
        described = [converted(tool) for tool in tools]
        return self.bind(
            tools=described,
            tool_choice=_tool_choice(tool_choice, described),
            parallel_tool_calls=parallel_tool_calls,
            **kwargs,
        )

    def with_structured_output(
        self,
        schema: OutputSchema,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[ToolSchema] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that are objects of a schema.

        Args:
            schema: a Pydantic class, a TypedDict, or a JSON schema.
            method: ``"json_schema"`` and ``"json_mode"`` constrain the answer to the schema,
                ``"function_calling"`` makes it a call of a tool with that schema.
            include_raw: give ``{"raw": message, "parsed": ..., "parsing_error": ...}``.
            strict: accepted and not needed, as for ``bind_tools``.
            tools: that it may call instead; ``raw`` then has the calls, and ``parsed`` is None.
            kwargs: options of the call, and ``schema_in_prompt=False`` if the last message is not
                to end with the schema, from which the model knows what its descriptions say.

        Raises:
            ValueError: the method is not known, or nothing of the schema would be enforced.
        """
        reader: Runnable[Any, Any] = parser_of(schema, method)
        if method == "function_calling":
            tool = tool_of(schema)
            choice = {"tool_choice": tool["function"]["name"], "whole": False}
            bound = self.bind_tools([tool], **{**choice, **kwargs})
        else:
            # Elsewhere, json_mode leaves it to the model to obey the schema; no reason to here.
            constraint = {"json_schema": json_schema_of(schema), "schema_in_prompt": True}
            bound = self.bind_tools(tools or [], whole=False, **{**constraint, **kwargs})
        if tools:
            if method == "function_calling" or not include_raw:
                raise ValueError(
                    "tools go with method='json_schema' and include_raw=True, because the answer "
                    "may be a call of one, which only the raw message has"
                )
            reader = unless_called(reader)
        described = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        return parsed(bound.bind(ls_structured_output_format=described), reader, include_raw)


def _tool_choice(choice: str | bool | JsonObject | None, tools: Sequence[JsonObject]) -> str | None:
    """Return the core's word for a choice in one of LangChain's forms; None for none."""
    if choice is None:
        return None
    if isinstance(choice, bool):
        return "required" if choice else "none"
    named: Any = choice.get("function", choice) if isinstance(choice, Mapping) else {"name": choice}
    chosen: str | None = named.get("name")  # OpenAI's form, or Anthropic's
    names = [tool["function"]["name"] for tool in tools if "function" in tool]
    if chosen == "any":
        return "required"
    if chosen not in ("auto", "required", "none", *names):
        raise ValueError(
            f"tool_choice {choice!r} is none of the tools {', '.join(names)}; "
            'give one of those names, "auto", "any" or "none"'
        )
    return chosen
