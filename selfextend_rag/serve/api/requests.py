"""What clients ask for: the bodies of OpenAI's API, read strictly.

A field that this server can't honour is refused unless its value asks for what is done anyway, so
that nobody gets an answer made otherwise than asked. Fields that never change an answer are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from selfextend_rag.output.schema import schema_of
from selfextend_rag.serve.errors import bad_request

JsonObject = dict[str, Any]
# Of wrong values the first is reported: an error for each took hundreds of times their bytes.
JsonObjects = Annotated[list[JsonObject], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]

# They name, bill, route or store a request; the answer is the same.
_WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
) | frozenset(("prompt_cache_retention",))
# Each with the values that ask for what is done anyway, besides null.
_ONE_WAY: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "suffix": (),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
_INSTEAD = {
    "functions": "give tools",
    "function_call": "give tool_choice",
    "n": "an answer is one; ask again with another seed",
    "best_of": "an answer is one; ask again with another seed",
    "frequency_penalty": "repetition_penalty is there",
    "presence_penalty": "repetition_penalty is there",
}


def _is_same(one: object, other: object) -> bool:
    """Return whether two JSON values are equal: 0 is no false, though Python has it so."""
    return one == other and isinstance(one, bool) is isinstance(other, bool)


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False  # pads events; nothing is hidden by that here


class Sampling(BaseModel):
    """What both kinds of completions take; numbers are checked by the model's own settings."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None

    def check_fields(self) -> None:
        """Refuse fields that are not known, or ask for what can't be had.

        Raises:
            ApiError: the message names the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in _WITHOUT_EFFECT or (value is None and name in _ONE_WAY | _INSTEAD):
                continue
            if any(_is_same(value, same) for same in _ONE_WAY.get(name, ())):
                continue
            if name not in _ONE_WAY and name not in _INSTEAD:
                bad_request(f"unknown field {name}", name, "unknown_parameter")
            instead = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            bad_request(f"{name}={value!r} can't be had here{instead}", name, "unsupported_value")

    def options(self) -> JsonObject:
        """Return what was given of `GenerationSettings`, under its names."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        given: JsonObject = {name: getattr(self, name) for name in names}
        given["max_new_tokens"] = self.max_tokens
        return {name: value for name, value in given.items() if value is not None}

    @property
    def wants_usage(self) -> bool:
        """Return whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class JsonSchemaFormat(BaseModel):
    """``json_schema`` of a ``response_format``."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    name: str = ""
    description: str | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class FormatText(BaseModel):
    """A ``response_format`` of plain text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class FormatObject(BaseModel):
    """A ``response_format`` of any JSON object."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json_object"]


class FormatSchema(BaseModel):
    """A ``response_format`` of JSON that is valid for a schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[FormatText | FormatObject | FormatSchema, Field(discriminator="type")]


def _json_schema(form: ResponseFormat | None) -> Mapping[str, object] | None:
    if form is None or isinstance(form, FormatText):
        return None
    if isinstance(form, FormatObject):
        return {"type": "object"}
    return schema_of(form.json_schema.schema_, "the schema of response_format")


class ChatRequest(Sampling):
    """The body of ``/v1/chat/completions``."""

    messages: JsonObjects = Field(min_length=1)
    max_completion_tokens: int | None = None
    tools: JsonObjects | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    def options(self) -> JsonObject:
        """Return what was given, under the names of ``LongContextLLM.generate``."""
        given = super().options()
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                bad_request("max_tokens and max_completion_tokens differ; give one", "max_tokens")
            given["max_new_tokens"] = self.max_completion_tokens
        if self.stop is not None:
            given["also_stop"] = self.stop
        if self.tools:
            given["tools"] = self.tools
            given["parallel_tool_calls"] = self.parallel_tool_calls is not False
        if self.tool_choice is not None:
            given["tool_choice"] = self.tool_choice
        if (schema := self.json_schema()) is not None:
            given["json_schema"] = schema
        return given

    def json_schema(self) -> Mapping[str, object] | None:
        """Return the schema that ``response_format`` names; None for text.

        Raises:
            SchemaError: it says nothing of a value.
        """
        return _json_schema(self.response_format)


class CompletionRequest(Sampling):
    """The body of ``/v1/completions``."""

    prompt: str | Texts
    response_format: ResponseFormat | None = None

    def text(self) -> str:
        """Return the one prompt.

        Raises:
            ApiError: there are several, or none.
        """
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            bad_request(f"give one prompt, not {len(prompts)}; send them one by one", "prompt")
        return prompts[0]

    def options(self) -> JsonObject:
        """Return what was given, under the names of ``LongContextLLM.generate``."""
        given = super().options()
        if self.stop is not None:
            given["stop"] = self.stop
        if (schema := _json_schema(self.response_format)) is not None:
            given["json_schema"] = schema
        return given
