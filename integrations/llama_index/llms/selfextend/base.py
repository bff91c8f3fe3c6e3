"""The language model for LlamaIndex: one `LongContextLLM` underneath, streaming throughout."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    messages_to_prompt as generic_messages_to_prompt,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import (
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate

from llama_index.llms.selfextend.messages import (
    JsonObject,
    acollected,
    aparts,
    chat_response,
    collected,
    completion,
    core_messages,
    parts,
)
from llama_index.llms.selfextend.structured import AnswersInObjects
from llama_index.llms.selfextend.tokenizer import register_tokenizer
from selfextend_rag import (
    BaseLLM,
    BaseReading,
    ContextPlan,
    TextStream,
    frameworks,
    question_and_history,
)

_LOADING = (
    *("dtype", "device_map", "full_attention", "weight_bits"),
    *("model_options", "quantization_config"),
)
_OF_ANSWERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_OF_EVERY_CALL = ("json_schema", "progress", "cancelled")
_OF_CONVERSATIONS = ("tools", "tool_choice", "parallel_tool_calls")
_OF_READINGS = ("evidence",)
_WRITERS = {
    "messages_to_prompt": generic_messages_to_prompt,
    "completion_to_prompt": default_completion_to_prompt,
    "query_wrapper_prompt": None,
}
"""What writes whole prompts if a user gives it, and what the framework has by default."""
_BREAK = "\n\n"


class SelfExtendLLM(AnswersInObjects):
    """A local model that reads up to its extended window; what does not fit is refused, never cut.

    Setup:
        ``pip install 'selfextend-rag[llama-index]'``.

    Construct:
        .. code-block:: python

            from llama_index.llms.selfextend import SelfExtendLLM

            llm = SelfExtendLLM.bundled()  # or SelfExtendLLM("hub id or folder", dtype="bfloat16")

    Invoke:
        .. code-block:: python

            print(llm.complete("The pass key is 48213. The pass key is", max_tokens=8))

    Stream:
        .. code-block:: python

            for part in llm.stream_complete("Question: Who is he?\\nAnswer:", max_tokens=8):
                print(part.delta, end="")

    Each call also takes options of `GenerationSettings` (``temperature``, ``stop``, ``seed``, ...),
    ``max_tokens``, ``json_schema``, ``progress`` and ``cancelled``. A response has its figures in
    ``raw``: ``usage``, ``finish_reason``, ``plan``; of a stream, the last part has.

    Calls of tools and structured answers are constrained to their schemas as they are generated, so
    they are always valid; any ``pydantic_program_mode`` but the default is LlamaIndex's own way.
    Instances of one model, made by name, share its weights. The first one made registers its
    tokenizer for all that LlamaIndex counts, unless you have set one of your own.

    ``system_prompt`` comes before every conversation and every completion. For models without a
    chat template, ``messages_to_prompt`` and ``completion_to_prompt`` may write the prompts.

    Args:
        model: hub id, folder or ``"bundled"``, the default; or a loaded model of transformers (with
            ``tokenizer``), or a `LongContextLLM` or `RemoteLLM`, which may be given as ``llm`` too.
        tokenizer: the tokenizer of a loaded model; of a server's also a hub id or folder.
        base_url: where a server's API begins, which then has the model; with ``api_key`` and
            options of `RemoteLLM`.
        options: fields of this class, and options of `LongContextLLM` such as ``max_group_size``.
            Those of ``HuggingFaceLLM`` are taken too, or refused with what to use instead.

    Raises:
        ModelLoadError: there is no such model.
        TypeError: an option is not known, or does not go with the model.
    """

    model: str = Field(description="Hub id, folder, or 'bundled'; the name of a loaded model.")
    base_url: str | None = Field(default=None, description="Where a server's API begins.")
    api_key: str | None = Field(
        default=None, description="Of the server.", exclude=True, repr=False
    )
    max_retries: int | None = Field(default=None, description="For a server that is busy.")
    dtype: object = Field(default="auto", description="Precision of the weights.")
    device_map: object = Field(default=None, description="Where the weights go, such as 'auto'.")
    full_attention: bool = Field(
        default=False, description="Switch off sliding windows, where every layer has one."
    )
    weight_bits: int | None = Field(default=None, description="8 or 4: faster on a CPU.")
    quantization_config: object = Field(default=None, description="Of transformers.")
    model_options: JsonObject = Field(default_factory=dict, description="For from_pretrained.")
    context_options: JsonObject = Field(default_factory=dict, description="For LongContextLLM.")
    max_new_tokens: int | None = Field(default=None, description="Tokens an answer may have.")
    temperature: float | None = Field(default=None, description="0, the default, is greedy.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, description="Texts that end an answer.")
    timeout: float | None = Field(default=None, description="Seconds that an answer may take.")
    context_window: int | None = Field(
        default=None, description="What LlamaIndex plans with, at most the extended window."
    )

    _llm: BaseLLM = PrivateAttr()
    _reading: BaseReading | None = PrivateAttr(default=None)
    _live: bool = PrivateAttr(default=False)
    _window: int = PrivateAttr()

    def __init__(self, model: Any = None, *, tokenizer: object = None, **options: Any) -> None:
        model = options.pop("llm", None) if model is None else model
        given = {} if model is None else {"model": model}
        options = frameworks.sort_options({**given, **options}, type(self).model_fields)
        served = options.get("base_url") is not None
        model = options.pop("model", None if served else "bundled")
        options["dtype"] = str(options.get("dtype") or "auto").removeprefix("torch.")
        named = isinstance(model, str | os.PathLike)
        super().__init__(**{"model": os.fspath(model) if named else "", **options})
        self._llm = self._opened(model, tokenizer)
        self._live = tokenizer is not None if served else not named
        self.model = self.model or self._llm.name
        self._window = self._planned_window()
        self._options({})  # refuses here what would fail in each call
        if self._llm.prompts.chat:
            self._refuse(_WRITERS, "a chat template writes them, unless prompt_form is 'plain'")
        register_tokenizer(self.tokenize)

    def _opened(self, model: object, tokenizer: object) -> BaseLLM:
        loading = {name: getattr(self, name) for name in _LOADING}
        if self.base_url is None:
            return frameworks.open_llm(model, tokenizer, loading, self.context_options)
        connection = {"api_key": self.api_key, "max_retries": self.max_retries}
        more = {**connection, **self.context_options}
        return frameworks.connect_llm(self.base_url, model, tokenizer, loading, more)

    @field_validator(*_OF_ANSWERS, "max_new_tokens", "timeout", "context_window", mode="before")
    @classmethod
    def _numbers(cls, value: object, of: ValidationInfo) -> object:
        return frameworks.number(of.field_name, value)

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    @classmethod
    def bundled(cls, **options: Any) -> SelfExtendLLM:
        """Return the small model that comes with this package; no download."""
        return cls("bundled", **options)

    @classmethod
    def class_name(cls) -> str:
        return "SelfExtendLLM"

    @property
    def core(self) -> BaseLLM:
        """Return the `LongContextLLM` underneath."""
        return self._llm

    def _planned_window(self) -> int:
        """Return the extended window, or what the user wants LlamaIndex to plan with.

        Raises:
            OptionError: that is more than there is, or holds no answer of ``max_tokens``.
        """
        there, asked = self._llm.planner.extended_window, self.context_window
        least = 1 + (self.max_new_tokens or 1)
        if asked is not None and not least <= asked <= there:
            raise frameworks.OptionError(
                f"context_window must be from {least}, a prompt and max_tokens, to {there}, the "
                f"extended window of {self.model}, got {asked}; leave it out for all of it, or "
                "allow more by max_group_size"
            )
        return asked or there

    @property
    def metadata(self) -> LLMMetadata:
        """Return what LlamaIndex plans with; ``context_window`` is the extended one by default."""
        return LLMMetadata(
            context_window=self._window,
            num_output=self.max_new_tokens
            or min(self._llm.budget.max_new_tokens, max(1, self._window // 2)),
            is_chat_model=self._llm.prompts.chat,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text by the model's own tokenizer, without a start token."""
        return self._llm.prompts.codec.text(text)

    def check_prompt(self, prompt: BasePromptTemplate, **prompt_args: Any) -> ContextPlan:
        """Return how ``predict`` would run a prompt; the model does not run.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit.
        """
        core = self._llm
        if core.prompts.chat:
            tokens = core.prompts.prompt(core_messages(self._get_messages(prompt, **prompt_args)))
        else:
            tokens = core.prompts.prompt(self._get_prompt(prompt, **prompt_args))
        return core.budget.plan_prompt(len(tokens), self.metadata.num_output)

    def over(self, reading: BaseReading | None) -> SelfExtendLLM:
        """Return this model, with what it is asked put to documents that it has read.

        ``complete`` then takes a question, ``chat`` a conversation about the documents. The system
        prompt comes before the first question. Over None, it is as it was.

        Raises:
            TypeError: an option of this model would write the prompt, which has been read already.
        """
        self._refuse({**_WRITERS, "output_parser": None}, "the documents have been read without it")
        bound = self.model_copy()
        bound._reading = reading
        return bound

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return what follows a prompt; a chat model takes it as one message of the user."""
        return collected(
            self._start(self._completion(prompt, formatted), kwargs), completion, self.model
        )

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Do as ``complete``, part by part."""
        stream = self._start(self._completion(prompt, formatted), kwargs)
        return parts(stream, completion, self.model)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Do as ``complete``, with the event loop free."""
        stream = await self._astart(self._completion(prompt, formatted), kwargs)
        return await acollected(stream, completion, self.model)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Do as ``stream_complete``, with the event loop free."""
        stream = await self._astart(self._completion(prompt, formatted), kwargs)
        return aparts(stream, completion, self.model)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to a conversation."""
        return collected(
            self._start(self._conversation(messages), kwargs), chat_response, self.model
        )

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Do as ``chat``, part by part; tool calls come whole, with the last part."""
        return parts(self._start(self._conversation(messages), kwargs), chat_response, self.model)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do as ``chat``, with the event loop free."""
        stream = await self._astart(self._conversation(messages), kwargs)
        return await acollected(stream, chat_response, self.model)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do as ``stream_chat``, with the event loop free."""
        stream = await self._astart(self._conversation(messages), kwargs)
        return aparts(stream, chat_response, self.model)

    def _refuse(self, stock: Mapping[str, object], reason: str) -> None:
        """Refuse what a user gave that would write prompts, or read answers, otherwise."""
        given = [name for name, usual in stock.items() if getattr(self, name) not in (None, usual)]
        if given:
            raise frameworks.OptionError(
                f"{', '.join(given)} can't be used on the prompts of {self.model}: {reason}; "
                "leave it out, and give what a model should know of its task as system_prompt"
            )

    def _completion(self, prompt: str, formatted: bool) -> str | list[JsonObject]:
        """Return what is completed; a chat model, and a reading, are asked it in a conversation."""
        if formatted:
            return prompt
        if self._reading is not None or (self.system_prompt and self._llm.prompts.chat):
            return self._conversation([ChatMessage(role=MessageRole.USER, content=prompt)])
        assert self.completion_to_prompt is not None  # the framework has set its own
        return self._written(self._extend_prompt(self.completion_to_prompt(prompt)), [prompt])

    def _conversation(self, messages: Sequence[ChatMessage]) -> str | list[JsonObject]:
        """Return a conversation with one system message at most, the system prompt in it."""
        said, told = core_messages(messages), list[str]()
        while said and said[0]["role"] == "system":
            told.append(said.pop(0)["content"])
        if self.system_prompt and self.system_prompt not in told:
            told.insert(0, self.system_prompt)
        if self.messages_to_prompt not in (None, generic_messages_to_prompt):
            begin = [ChatMessage(role=MessageRole.SYSTEM, content=text) for text in told]
            rest = messages[len(messages) - len(said) :]
            if any(isinstance(message["content"], list) for message in said):
                raise ValueError(
                    "messages_to_prompt writes text, and a message holds a picture; leave one out"
                )
            texts = [*told, *(message.content or "" for message in rest)]
            return self._written(self.messages_to_prompt([*begin, *rest]), texts)
        return [*([{"role": "system", "content": _BREAK.join(told)}] if told else []), *said]

    def _written(self, prompt: str, texts: Sequence[str]) -> str:
        """Return a prompt that a user's function made of texts; control tokens are refused."""
        given = "".join((*texts, self.system_prompt or ""))
        for token in self._llm.tokenizer.all_special_tokens:
            if prompt.count(token) > given.count(token):
                raise ValueError(
                    f"a prompt holds {token!r}, which is text here and no control token, as is all "
                    "in a prompt; leave it out, or give the tokenizer a chat template"
                )
        return prompt

    def _options(self, call: JsonObject) -> JsonObject:
        own = {name: getattr(self, name) for name in (*_OF_ANSWERS, "max_new_tokens", "stop")}
        if self.context_window is not None:
            own["max_new_tokens"] = self.metadata.num_output
        others = _OF_CONVERSATIONS if self._reading is None else _OF_READINGS
        options = frameworks.answer_options(own, call, others=(*_OF_EVERY_CALL, *others))
        if self.timeout is not None:
            options["cancelled"] = _in_time(self.timeout, options.get("cancelled"))
        return options

    def _start(self, prompt: str | list[JsonObject], call: JsonObject) -> TextStream:
        options = self._options(call)
        if self._reading is None:
            return self._llm.stream(prompt, **options)
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        told = [message["content"] for message in asked[:1] if message["role"] == "system"]
        question, history = question_and_history(asked[len(told) :])
        if told and history:
            history[0] = _BREAK.join([*told, history[0][0]]), history[0][1]
        elif told:
            question = _BREAK.join([*told, question])
        return self._reading.stream(question, history=history, **options)

    async def _astart(self, prompt: str | list[JsonObject], call: JsonObject) -> TextStream:
        if self._reading is not None:
            return self._start(prompt, call)  # a question alone is tokenized in no time
        return await self._llm.astream(prompt, **self._options(call))

    def __deepcopy__(self, memo: object = None) -> SelfExtendLLM:
        """Return a copy on the same weights."""
        return self.model_copy(update={"context_options": copy.deepcopy(self.context_options)})

    def __getstate__(self) -> JsonObject:
        """Return what finds the model again by its name.

        Raises:
            TypeError: it was made from a loaded model, which has none, or is bound to a reading.
        """
        if self._live or self._reading is not None:
            raise TypeError(
                "a SelfExtendLLM can be pickled when it was made by name, without a reading; this "
                "one was made from loaded objects: give it a folder or hub id instead"
            )
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields.pop("callback_manager")
        fields.pop("rate_limiter")
        return fields

    def __setstate__(self, state: JsonObject) -> None:
        """Find the model again."""
        self.__init__(**state)  # type: ignore[misc]  # as pydantic does


def _in_time(
    seconds: float, cancelled: threading.Event | Callable[[], bool] | None
) -> Callable[[], bool]:
    """Return what ends an answer that starts now: as the caller does, or by an error in time."""
    end = time.monotonic() + seconds
    asked = cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled

    def ends() -> bool:
        if time.monotonic() > end:
            raise TimeoutError(
                f"the answer took more than the timeout of {seconds} seconds; allow more, or leave "
                "timeout out"
            )
        return asked is not None and asked()

    return ends
