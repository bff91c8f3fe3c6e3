"""Answers as Pydantic objects: decoding is held to their JSON schema."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from typing import Any

import llama_index.core.instrumentation as instrument
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode

_dispatcher = instrument.get_dispatcher(__name__)


class StructuredAnswers(LLM):
    """``structured_predict`` in its four forms, and with them ``as_structured_llm``.

    Another ``pydantic_program_mode`` than the default goes LlamaIndex's own ways.
    """

    @_dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Return an object of a Pydantic class.

        Args:
            output_cls: the class; its JSON schema is told to the model and kept to.
            prompt: what to say.
            llm_kwargs: options of the answer.
            prompt_args: fill the prompt.

        Raises:
            ValueError: the answer was cut off; the message says so.
        """
        if not self._by_schema():
            return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._asking_for(output_cls, prompt, prompt_args)
        return _ended(output_cls, self.chat(messages, **_held_to(output_cls, llm_kwargs)))

    @_dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Do as ``structured_predict``, with the event loop free."""
        if not self._by_schema():
            return await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
        _started(output_cls, prompt, prompt_args)
        messages = self._asking_for(output_cls, prompt, prompt_args)
        return _ended(output_cls, await self.achat(messages, **_held_to(output_cls, llm_kwargs)))

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        if not self._by_schema():
            yield from super()._structured_stream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return
        messages = self._asking_for(output_cls, prompt, prompt_args)
        partial, last = None, None
        for last in self.stream_chat(messages, **_held_to(output_cls, llm_kwargs)):
            partial = process_streaming_content_incremental(last, output_cls, partial)
            yield partial
        yield _parsed(output_cls, last)

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if not self._by_schema():
            return await super()._structured_astream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
        messages = self._asking_for(output_cls, prompt, prompt_args)
        stream = await self.astream_chat(messages, **_held_to(output_cls, llm_kwargs))

        async def pieces() -> AsyncGenerator[Any, None]:
            partial, last = None, None
            async for last in stream:
                partial = process_streaming_content_incremental(last, output_cls, partial)
                yield partial
            yield _parsed(output_cls, last)

        return pieces()

    def _by_schema(self) -> bool:
        return self.pydantic_program_mode == PydanticProgramMode.DEFAULT

    def _asking_for(
        self, output_cls: type[Any], prompt: PromptTemplate, values: dict[str, Any]
    ) -> list[ChatMessage]:
        """Return the messages of a prompt, the last one ending with the schema.

        Last, so that a long text before it is read once for all schemas. The framework's own parser
        would write every brace of it twice.
        """
        given = self._extend_messages(prompt.format_messages(llm=self, **values))
        messages = [message.model_copy(deep=True) for message in given]  # the prompt keeps its own
        schema = json.dumps(output_cls.model_json_schema(), ensure_ascii=False)
        messages[-1].blocks.append(TextBlock(text=_TOLD + schema))
        return messages


_TOLD = "Answer with a JSON object of this schema: "


def _held_to(output_cls: type[Any], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    # The framework's own programs take these; a schema leaves nothing to choose.
    of_programs = ("tool_choice", "tool_required", "allow_parallel_tool_calls")
    options = {k: v for k, v in (llm_kwargs or {}).items() if k not in of_programs}
    return {**options, "json_schema": output_cls.model_json_schema()}


def _started(output_cls: type[Any], prompt: PromptTemplate, values: dict[str, Any]) -> None:
    event = LLMStructuredPredictStartEvent(
        output_cls=output_cls, template=prompt, template_args=values
    )
    _dispatcher.event(event)


def _ended(output_cls: type[Any], response: ChatResponse) -> BaseModel:
    found = _parsed(output_cls, response)
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found


def _parsed(output_cls: type[Any], response: ChatResponse | None) -> Any:
    """Return the object that a whole answer is."""
    raw: dict[str, Any] = (response.raw if response is not None else None) or {}
    text = (response.message.content if response is not None else None) or ""
    if raw.get("finish_reason") != "stop":
        raise ValueError(
            f"the answer for {output_cls.__name__} was cut off "
            f"(finish_reason {raw.get('finish_reason')!r}) after {text[-80:]!r}; "
            "allow more with max_new_tokens of the model, or max_tokens in llm_kwargs"
        )
    return output_cls.model_validate_json(text)
