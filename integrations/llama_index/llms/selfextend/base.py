"""The language model for LlamaIndex: one `LongContextLLM` underneath, streaming throughout."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.prompts import BasePromptTemplate

from llama_index.llms.selfextend.calling import ToolCalling
from llama_index.llms.selfextend.messages import (
    acollected,
    apieces,
    chat_response,
    collected,
    completion,
    core_messages,
    pieces,
)
from llama_index.llms.selfextend.options import CONTEXT, GENERATION, LOADING, call_options, opened
from llama_index.llms.selfextend.structured import StructuredAnswers
from llama_index.llms.selfextend.tokens import register_tokenizer
from selfextend_rag import (
    ContextPlan,
    LongContextLLM,
    Reading,
    TextStream,
    question_and_history,
)


class SelfExtendLLM(StructuredAnswers, ToolCalling):
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

            for piece in llm.stream_complete("Question: Who is he?\\nAnswer:", max_tokens=8):
                print(piece.delta, end="")

    Each call also takes options of `GenerationSettings` (``temperature``, ``stop``, ``seed``, ...),
    ``max_tokens``, ``json_schema``, ``progress`` and ``cancelled``. A response has its figures in
    ``raw``: ``usage``, ``finish_reason``, ``plan``; of a stream, the last piece has.

    Instances of one model, made by name, share its weights. The first one made registers its
    tokenizer for all that LlamaIndex counts, unless you have set one of your own (see
    `use_full_documents`).

    Args:
        model: hub id, folder or ``"bundled"``; or a live model of transformers (with
            ``tokenizer``), or a `LongContextLLM`.
        tokenizer: the tokenizer of a live model.
        options: fields of this class, and options of `LongContextLLM` such as ``max_group_size``.

    Raises:
        ModelLoadError: there is no such model.
        TypeError: an option is not known, or does not go with a model that is live.
    """

    model: str = Field(description="Hub id, folder, or 'bundled'; the name of a live model.")
    dtype: Any = Field(default="auto", description="Precision of the weights.")
    device_map: Any = Field(default=None, description="Where the weights go, such as 'auto'.")
    full_attention: bool = Field(
        default=False,
        description="Whether to switch off the sliding windows of a model that has one in every "
        "layer.",
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict, description="More for transformers' from_pretrained."
    )
    context_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of LongContextLLM."
    )
    max_new_tokens: int | None = Field(default=None, description="Tokens an answer may have.")
    temperature: float | None = Field(default=None, description="0, the default, is greedy.")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, description="Texts that end an answer.")

    _llm: LongContextLLM = PrivateAttr()
    _reading: Reading | None = PrivateAttr(default=None)
    _live: bool = PrivateAttr(default=False)
    _window: int = PrivateAttr()

    def __init__(self, model: Any = "bundled", *, tokenizer: Any = None, **options: Any) -> None:
        in_context = {name: options.pop(name) for name in CONTEXT & options.keys()}
        in_context = {**(options.pop("context_options", None) or {}), **in_context}
        if unknown := sorted(options.keys() - type(self).model_fields.keys()):
            raise TypeError(f"unknown option {', '.join(unknown)} of SelfExtendLLM")
        if "dtype" in options:
            options["dtype"] = str(options["dtype"]).removeprefix("torch.")
        loading = {name: options.get(name) or default for name, default in LOADING.items()}
        named = isinstance(model, str | os.PathLike)
        llm = opened(model, tokenizer, loading, in_context)
        name = os.fspath(model) if named else llm.name
        fields = {**options, "model": name, "context_options": in_context}
        super().__init__(**fields)
        self._llm, self._live = llm, not named
        self._window = llm.planner.extended_window
        call_options(self._defaults(), {})  # refuses here what would fail in each call
        register_tokenizer(self.tokenize)

    @classmethod
    def bundled(cls, **options: Any) -> SelfExtendLLM:
        """Return the small model that comes with this package; no download."""
        return cls("bundled", **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised instances carry."""
        return "SelfExtendLLM"

    @property
    def core(self) -> LongContextLLM:
        """Return the `LongContextLLM` underneath."""
        return self._llm

    @property
    def metadata(self) -> LLMMetadata:
        """Return what LlamaIndex plans with; ``context_window`` is the extended one."""
        return LLMMetadata(
            context_window=self._window,
            num_output=self.max_new_tokens or self._llm.budget.max_new_tokens,
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

    def over(self, reading: Reading) -> SelfExtendLLM:
        """Return this model with what it is asked put to documents that it has read.

        ``complete`` then takes a question, ``chat`` a conversation about the documents.
        """
        bound = self.model_copy()
        bound._reading = reading
        return bound

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Return what follows a prompt; a chat model takes it as one message of the user."""
        return collected(self._start(self._text(prompt, formatted), kwargs), completion, self.model)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Do as ``complete``, piece by piece."""
        stream = self._start(self._text(prompt, formatted), kwargs)
        return pieces(stream, completion, self.model)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Do as ``complete``, with the event loop free."""
        stream = await self._astart(self._text(prompt, formatted), kwargs)
        return await acollected(stream, completion, self.model)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Do as ``stream_complete``, with the event loop free."""
        stream = await self._astart(self._text(prompt, formatted), kwargs)
        return apieces(stream, completion, self.model)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer to a conversation."""
        return collected(self._start(core_messages(messages), kwargs), chat_response, self.model)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Do as ``chat``, piece by piece; tool calls come whole, with the last piece."""
        return pieces(self._start(core_messages(messages), kwargs), chat_response, self.model)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Do as ``chat``, with the event loop free."""
        stream = await self._astart(core_messages(messages), kwargs)
        return await acollected(stream, chat_response, self.model)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Do as ``stream_chat``, with the event loop free."""
        stream = await self._astart(core_messages(messages), kwargs)
        return apieces(stream, chat_response, self.model)

    def _defaults(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*GENERATION, "max_new_tokens", "stop")}

    def _text(self, prompt: str, formatted: bool) -> str:
        if formatted or self.completion_to_prompt is None:
            return prompt
        return self.completion_to_prompt(prompt)

    def _options(self, prompt: Any, call: dict[str, Any]) -> dict[str, Any]:
        options = call_options(self._defaults(), call, of_reading=self._reading is not None)
        framed = self._reading is not None or not isinstance(prompt, str)
        if framed and "stop" in options:  # beside, not instead of, what ends every answer
            given = options["stop"]
            stops = (given,) if isinstance(given, str) else tuple(given)
            options["stop"] = (*stops, *self._llm.prompts.answer_stops)
        return options

    def _start(self, prompt: str | list[dict[str, Any]], call: dict[str, Any]) -> TextStream:
        options = self._options(prompt, call)
        if self._reading is not None:
            asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            question, history = question_and_history(asked)
            return self._reading.stream(question, history=history, **options)
        return self._llm.stream(prompt, **options)

    async def _astart(self, prompt: str | list[dict[str, Any]], call: dict[str, Any]) -> TextStream:
        if self._reading is not None:
            return self._start(prompt, call)  # a question alone is tokenized in no time
        return await self._llm.astream(prompt, **self._options(prompt, call))

    def __deepcopy__(self, memo: Any = None) -> SelfExtendLLM:
        """Return a copy on the same weights."""
        return self.model_copy(update={"context_options": copy.deepcopy(self.context_options)})

    def __getstate__(self) -> dict[str, Any]:
        """Return what finds the model again by its name.

        Raises:
            TypeError: it was made from a live model, which has none, or it stands over a reading.
        """
        if self._live or self._reading is not None:
            raise TypeError(
                "a SelfExtendLLM can be pickled when it was made by name, without a reading; this "
                "one was made from live objects: give it a folder or hub id instead"
            )
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        fields.pop("callback_manager")
        fields.pop("rate_limiter")
        return fields

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the model again."""
        self.__init__(**state)  # type: ignore[misc]  # as pydantic does
