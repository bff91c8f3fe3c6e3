"""Objects of Pydantic classes, whole and in parts, from a model constrained to their schemas."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import pytest
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel

from llama_index.llms.selfextend import SelfExtendLLM


class House(BaseModel):
    """A house."""

    size: Literal["small", "large"]
    old: bool


PROMPT = PromptTemplate("The {what} is large. Describe it.")


@pytest.fixture(scope="module")
def llm(bundled):
    return SelfExtendLLM(bundled, max_new_tokens=60)


def test_every_form_gives_the_same_valid_object(llm):
    house = llm.structured_predict(House, PROMPT, what="house")
    assert type(house) is House
    assert asyncio.run(llm.astructured_predict(House, PROMPT, what="house")) == house
    *_, last = llm.stream_structured_predict(House, PROMPT, what="house")
    assert last == house

    async def streamed():
        stream = await llm.astream_structured_predict(House, PROMPT, what="house")
        return [part async for part in stream]

    assert asyncio.run(streamed())[-1] == house


def test_parts_come_while_the_answer_does(llm):
    parts = list(llm.stream_structured_predict(House, PROMPT, what="house"))
    assert any(part.size and not getattr(part, "old", None) for part in parts[:-1])


def test_the_schema_comes_after_all_else_of_the_prompt(llm, monkeypatch):
    seen = []
    stream = llm.core.stream

    def watched(prompt, **options):
        seen.append(prompt)
        return stream(prompt, **options)

    monkeypatch.setattr(llm.core, "stream", watched)
    llm.structured_predict(House, PROMPT, what="house")
    content = seen[0][-1]["content"]
    assert content.startswith("The house is large. Describe it.")
    assert json.loads(content[content.index("{") :]) == House.model_json_schema()


def test_a_structured_model_answers_in_json(llm):
    structured = llm.as_structured_llm(House)
    response = structured.chat([ChatMessage(role="user", content="The house is old.")])
    assert House.model_validate_json(response.message.content) == response.raw
    assert House.model_validate_json(structured.complete("The house is old.").text)
    *_, last = structured.stream_chat([ChatMessage(role="user", content="The house is old.")])
    assert last.raw == response.raw


def test_an_answer_that_was_cut_off_is_an_error_that_says_so(llm):
    for call in (
        lambda: llm.structured_predict(House, PROMPT, llm_kwargs={"max_tokens": 3}, what="house"),
        lambda: list(
            llm.stream_structured_predict(House, PROMPT, llm_kwargs={"max_tokens": 3}, what="house")
        ),
    ):
        with pytest.raises(ValueError, match=r"for House was cut off .*'length'.*max_tokens"):
            call()


def test_a_prompt_is_not_marked_for_the_next_time(llm):
    prompt = ChatPromptTemplate([ChatMessage(role="user", content="The house is large.")])
    llm.structured_predict(House, prompt)
    assert prompt.message_templates[0].content == "The house is large."


def test_the_framework_s_own_way_by_function_calls_works_too(bundled):
    llm = SelfExtendLLM(
        bundled, max_new_tokens=60, pydantic_program_mode=PydanticProgramMode.FUNCTION
    )
    assert type(llm.structured_predict(House, PROMPT, what="house")) is House


def test_callbacks_and_events_fire(bundled):
    class Kept(BaseEventHandler):
        seen: list = []  # noqa: RUF012 - a field of pydantic

        def handle(self, event, **kwargs):
            self.seen.append(type(event))

    kept, debug = Kept(), LlamaDebugHandler(print_trace_on_end=False)
    llm = SelfExtendLLM(bundled, max_new_tokens=60, callback_manager=CallbackManager([debug]))
    root = get_dispatcher()
    root.add_event_handler(kept)
    try:
        llm.structured_predict(House, PROMPT, what="house")
    finally:
        root.event_handlers.remove(kept)
    assert kept.seen.count(LLMStructuredPredictStartEvent) == 1
    assert kept.seen.count(LLMStructuredPredictEndEvent) == 1
    assert len(debug.get_llm_inputs_outputs()) == 1
