"""What the chat model and the completion model share: which model it is, and how it answers."""

from __future__ import annotations

import inspect
import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.exceptions import ModelTimeoutError
from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from selfextend_rag import Answer, GenerationSettings, LongContextLLM, shared_llm

_CONTEXT_OPTIONS = frozenset(inspect.signature(LongContextLLM.__init__).parameters) - {
    "self",
    "model",
    "tokenizer",
}
_OF_HOSTED_MODELS = frozenset(("api_key", "base_url", "max_retries"))
"""LangChain's standard parameters that have nothing to act on here; given, they are left out."""

_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_ALIASES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_PER_CALL = frozenset((*_GENERATION, *_ALIASES, "max_new_tokens", "stop_token_ids"))


class SelfExtendSettings(Serializable):
    """Which model it is, how far its window may be stretched, and how it answers by default.

    Options of `LongContextLLM`, such as ``max_group_size`` or ``neighbor_window``, may be given as
    they are, and are kept in ``context_options``.
    """

    model: Any = None
    """A hub id, a folder, ``"bundled"``, or a model of transformers that is loaded."""
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """The tokenizer, with a model that is loaded."""
    llm: Any = Field(default=None, exclude=True, repr=False)
    """The `LongContextLLM` underneath; made from ``model`` unless it is given instead."""

    dtype: Any = "auto"
    """Precision of the weights, such as ``"bfloat16"``; as they are stored by default."""
    device_map: Any = None
    """Where the weights go, such as ``"auto"``; needs accelerate."""
    quantization_config: Any = None
    """A quantization config of transformers, or its dictionary."""
    full_attention: bool = False
    """Whether to switch off the sliding windows of a model that has one in every layer."""
    model_options: dict[str, Any] = Field(default_factory=dict)
    """More for transformers' ``from_pretrained``, such as ``revision``."""
    context_options: dict[str, Any] = Field(default_factory=dict)
    """Options of `LongContextLLM`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = Field(default=None, alias="max_new_tokens")
    """Tokens an answer may have; by default those that the model states, see `LongContextLLM`."""
    stop: list[str] | None = None
    """Texts that end every answer, beside the model's own end."""
    timeout: float | None = None
    """Seconds that an answer may take; then it is broken off and `ModelTimeoutError` raised."""
    streaming: bool = False
    """Whether ``invoke`` tells callbacks each piece of text as it comes."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=()
    )

    _live: bool = PrivateAttr(default=False)
    _identity: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _others: dict[str, LongContextLLM] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _sort_options(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if name not in _OF_HOSTED_MODELS}
        of_context = {name: given.pop(name) for name in _CONTEXT_OPTIONS & given.keys()}
        fields = cls.model_fields
        known = fields.keys() | {field.alias for field in fields.values() if field.alias}
        if unknown := sorted(given.keys() - known):
            raise ValueError(
                f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))} and "
                f"those of LongContextLLM: {', '.join(sorted(_CONTEXT_OPTIONS))}"
            )
        if of_context:
            given["context_options"] = {**(given.get("context_options") or {}), **of_context}
        return given

    @field_validator("dtype")
    @classmethod
    def _name_of_dtype(cls, dtype: Any) -> Any:
        return None if dtype is None else str(dtype).removeprefix("torch.")

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    def model_post_init(self, context: Any, /) -> None:
        """Open the model; before the framework asks for the profile, which tells its window."""
        super().model_post_init(context)
        if self.llm is not None:
            core_llm(self.llm)
            self._check_llm_alone()
            self._live, self.model = True, self.llm.name
        elif isinstance(self.model, str | os.PathLike):
            self.model = os.fspath(self.model)
            self.llm = self._load(self.model)
        elif self.model is None:
            raise ValueError(
                'no model was named; give model= a hub id, a folder, "bundled" or a model that is '
                "loaded (with tokenizer=), or llm= a LongContextLLM"
            )
        elif self.tokenizer is None:
            raise ValueError("a model that is loaded needs its tokenizer; give tokenizer= too")
        elif self.full_attention:
            raise ValueError("full_attention=True can't change a model that is loaded; name it")
        else:
            self.llm = LongContextLLM(self.model, self.tokenizer, **self.context_options)
            self._live, self.model = True, self.llm.name
        GenerationSettings(
            **self.call_options(None, {})
        )  # refuses here what would fail in each call

    @classmethod
    def bundled(cls, **options: Any) -> Any:
        """Return the small model that comes with this package; no download."""
        return cls(**{"model": "bundled", **options})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True; a model that was handed over loaded says of itself that it is not."""
        return True

    def to_json(self) -> Any:
        """Return the constructor and its arguments; none when the model was handed over loaded."""
        if not self._live:
            return super().to_json()
        described = self.to_json_not_implemented()
        # Keeps the answers of two models apart in LangChain's cache.
        return {**described, "id": [*described["id"], self._identity]}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """Return what is serialised in another form than it is kept in."""
        as_dict = getattr(self.quantization_config, "to_dict", None)
        return {"quantization_config": as_dict()} if as_dict else {}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        named = ("model", "dtype", "device_map", "context_options", "max_tokens", "stop")
        values = {name: getattr(self, name) for name in (*named, *_GENERATION)}
        return {**values, "full_attention": True} if self.full_attention else values

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text by the model's own tokenizer, without a start token."""
        return self.llm.prompts.codec.text(text)

    def _check_llm_alone(self) -> None:
        taken = [
            name
            for name in ("tokenizer", "quantization_config", "device_map")
            if getattr(self, name) is not None
        ]
        flags = ("full_attention", "model_options", "context_options")
        taken += [name for name in flags if getattr(self, name)]
        if taken:
            raise ValueError(
                f"{', '.join(taken)} can't be changed on an llm that is there; give them to the "
                "LongContextLLM, or name a model instead of llm="
            )

    def _load(self, source: str) -> LongContextLLM:
        more = dict(self.model_options)
        if self.quantization_config is not None:
            more["quantization_config"] = self.quantization_config
        return shared_llm(
            source,
            {
                "dtype": self.dtype,
                "device_map": self.device_map,
                "full_attention": self.full_attention,
                "model_options": more,
            },
            self.context_options,
        )

    def _llm_named(self, model: str | None) -> LongContextLLM:
        """Return the model of a call, which may name another one than this instance's."""
        if model is None or model == self.model:
            return self.llm
        if model not in self._others:
            self._others[model] = self._load(model)
        return self._others[model]

    def call_options(self, stop: list[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the generation options of a call, those of the instance where it has none.

        Raises:
            TypeError: an option is not known.
        """
        unknown = sorted(call.keys() - _PER_CALL)
        if unknown:
            raise TypeError(
                f"unknown option {', '.join(unknown)}; a call takes {', '.join(sorted(_PER_CALL))}"
            )
        own = {name: getattr(self, name) for name in (*_GENERATION, "max_tokens")}
        options = {
            _ALIASES.get(name, name): value
            for name, value in [*own.items(), *call.items()]
            if value is not None
        }
        stops = (*(self.stop or ()), *([stop] if isinstance(stop, str) else stop or ()))
        return {**options, "stop": stops} if stops else options

    def deadline(self) -> Callable[[], bool] | None:
        """Return what says whether the time of an answer that starts now is over."""
        if self.timeout is None:
            return None
        end = time.monotonic() + self.timeout
        return lambda: time.monotonic() > end

    def in_time(self, answer: Answer) -> Answer:
        """Return the answer.

        Raises:
            ModelTimeoutError: it was broken off.
        """
        if answer.finish_reason == "cancelled":
            raise ModelTimeoutError(
                f"the answer took more than the timeout of {self.timeout} seconds "
                f"({answer.usage.prompt_tokens} tokens of prompt, "
                f"{answer.usage.completion_tokens} of answer); allow more, or leave timeout out"
            )
        return answer


def core_llm(llm: Any) -> LongContextLLM:
    """Return the `LongContextLLM` underneath, or itself.

    Raises:
        TypeError: it is neither of these.
    """
    inner = llm.llm if isinstance(llm, SelfExtendSettings) else llm
    if isinstance(inner, LongContextLLM):
        return inner
    raise TypeError(
        "llm must be a ChatSelfExtend, a SelfExtendLLM or a LongContextLLM, got "
        f"{type(llm).__name__}"
    )
