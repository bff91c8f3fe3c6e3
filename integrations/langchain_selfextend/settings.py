"""What the chat model and the completion model share: which model it is, and how it answers."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from langchain_core.exceptions import ContextOverflowError, ModelTimeoutError
from langchain_core.load.serializable import Serializable
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from selfextend_rag import (
    Answer,
    BaseLLM,
    ContextBudgetExceeded,
    GenerationCancelled,
    frameworks,
)

Options = dict[str, Any]
"""Arguments by name; the function that takes them checks them."""

_LOADING = (
    *("dtype", "device_map", "full_attention", "weight_bits"),
    *("model_options", "quantization_config"),
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


class Profile(dict[str, Any]):
    """A profile that was found and not given: an instance with other fields finds its own."""


class ContextWindowExceeded(ContextBudgetExceeded, ContextOverflowError):
    """A prompt and its answer do not fit the extended window; no model has run.

    Both LangChain's error for this case, which its middleware reacts to, and the core's, which has
    the figures: ``needed``, ``available``, ``group_size``, ``excess`` and ``remedies``.
    """


@contextmanager
def overflow_of_the_framework() -> Iterator[None]:
    """Raise what does not fit as `ContextWindowExceeded`, and what took too long as its error."""
    try:
        yield
    except ContextWindowExceeded:
        raise
    except GenerationCancelled as error:  # a call is cancelled by its timeout
        raise ModelTimeoutError(f"the timeout has ended the reading: {error}") from error
    except ContextBudgetExceeded as error:
        raise ContextWindowExceeded(
            error.args[0],
            needed=error.needed,
            available=error.available,
            group_size=error.group_size,
            neighbor_window=error.neighbor_window,
            remedies=error.remedies,
        ) from error


class SelfExtendSettings(Serializable):
    """Which model it is, how far its window may be stretched, and how it answers by default.

    Options of `LongContextLLM`, such as ``max_group_size`` or ``neighbor_window``, may be given as
    they are, and are kept in ``context_options``.
    """

    model: Any = None
    """A hub id, a folder, ``"bundled"``, or a model of transformers that is loaded."""
    base_url: str | None = None
    """Where a server's API begins, such as ``http://127.0.0.1:8000/v1``; ``model`` is then a name
    there, by default of the only model, and options are those of `RemoteLLM`."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """For the server; by default ``SELFEXTEND_RAG_API_KEY`` of the environment."""
    max_retries: int | None = None
    """How often a request is sent again to a server that is busy."""
    tokenizer: object = Field(default=None, exclude=True, repr=False)
    """The tokenizer, with a model that is loaded; of a server's, also a hub id or folder."""
    loaded: BaseLLM | None = Field(default=None, alias="llm", exclude=True, repr=False)
    """A `LongContextLLM`, given as ``llm`` instead, or made of a model that is loaded."""

    dtype: object = "auto"
    """Precision of the weights, such as ``"bfloat16"``; as they are stored by default."""
    device_map: object = None
    """Where the weights go, such as ``"auto"``; needs accelerate."""
    quantization_config: object = None
    """A quantization config of transformers, or its dictionary."""
    full_attention: bool = False
    """Whether to switch off the sliding windows of a model that has one in every layer."""
    weight_bits: int | None = None
    """8 or 4 to round the weights to so many bits: faster answers on a CPU."""
    model_options: Options = Field(default_factory=dict)
    """More for transformers' ``from_pretrained``, such as ``revision``."""
    context_options: Options = Field(default_factory=dict)
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
    """Texts that end every answer, besides the model's own end."""
    timeout: float | None = None
    """Seconds that an answer may take; then it is broken off and `ModelTimeoutError` raised."""
    streaming: bool = False
    """Whether ``invoke`` reports each part of the text to callbacks as it comes."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=()
    )

    _opened: tuple[tuple[str, Options, Options], BaseLLM] | None = PrivateAttr(default=None)
    _identity: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _others: dict[str, BaseLLM] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _sort_options(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        given = dict(values)
        # LangChain's configurable fields give a new instance all fields that another one has.
        if isinstance(given.get("profile"), Profile):
            del given["profile"]
        fields = cls.model_fields
        aliases = {field.alias for field in fields.values() if field.alias}
        return frameworks.sort_options(given, fields.keys() | aliases)

    @field_validator(*_SAMPLING, "max_tokens", "timeout", mode="before")
    @classmethod
    def _numbers(cls, value: object, of: ValidationInfo) -> object:
        return frameworks.number(of.field_name, value)

    @field_validator("loaded", mode="before")
    @classmethod
    def _core_llm(cls, llm: object) -> BaseLLM | None:
        return None if llm is None else core_llm(llm)

    @field_validator("dtype")
    @classmethod
    def _name_of_dtype(cls, dtype: object) -> str | None:
        return None if dtype is None else str(dtype).removeprefix("torch.")

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    def model_post_init(self, context: object, /) -> None:
        """Open the model; before the framework asks for the profile, which has its window."""
        super().model_post_init(context)
        if self.loaded is None and self.model is None and self.base_url is None:
            raise ValueError(
                'no model was named; give model= a hub id, a folder, "bundled" or a model that is '
                "loaded (with tokenizer=), llm= a LongContextLLM, or base_url= a server"
            )
        if self.base_url is not None:
            self._connect_once()
        if isinstance(self.model, os.PathLike):
            self.model = os.fspath(self.model)
        elif self.loaded is not None or not isinstance(self.model, str):
            self.loaded = self._open(self.loaded or self.model, self.tokenizer)
            self.model, self.tokenizer = self.model or self.loaded.name, None
            if not isinstance(self.model, str):
                self.model = self.loaded.name
        self.call_options(None, {})  # refuses here what would fail in each call
        _ = self.llm

    @property
    def llm(self) -> BaseLLM:
        """Return the `LongContextLLM` underneath: always that of the fields as they are now.

        Raises:
            OptionError: the model was handed over loaded, and a field asks for another one.
        """
        if self.loaded is not None:
            if self.model != self.loaded.name:
                raise frameworks.OptionError(
                    f"model {self.model!r} can't be had of an instance that was made of "
                    f"{self.loaded.name}, loaded; make one with model= alone"
                )
            return self._open(self.loaded)
        wanted = self.model, self._loading, {**self.context_options, **self._connection}
        if self._opened is None or self._opened[0] != wanted:
            self._opened = wanted, self._open(self.model, self.tokenizer)
        return self._opened[1]

    @property
    def _loading(self) -> Options:
        return {name: getattr(self, name) for name in _LOADING}

    @property
    def _connection(self) -> Options:
        """Return what decides about the server; nothing where the model runs here."""
        if self.base_url is None:
            return {}
        named = {"base_url": self.base_url, "max_retries": self.max_retries}
        return {**named, "tokenizer": self.tokenizer}

    def _connect_once(self) -> None:
        """Name the model of a server, if it was not."""
        if self.loaded is not None:
            raise frameworks.OptionError("give llm= or base_url=, not both")
        if self.model is None:
            found = self._open(None, self.tokenizer)
            self.model = found.name
            wanted = self.model, self._loading, {**self.context_options, **self._connection}
            self._opened = wanted, found

    def _open(self, model: object, tokenizer: object = None) -> BaseLLM:
        if self.base_url is not None:
            key = None if self.api_key is None else self.api_key.get_secret_value()
            more = {"api_key": key, "max_retries": self.max_retries, **self.context_options}
            given = self.base_url, model, tokenizer or self.tokenizer, self._loading, more
            return frameworks.connect_llm(*given)
        return frameworks.open_llm(model, tokenizer, self._loading, self.context_options)

    @classmethod
    def bundled(cls, **options: Any) -> Self:
        """Return the small model that comes with this package; no download."""
        return cls(**{"model": "bundled", **options})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True; a model that was handed over loaded says of itself that it is not."""
        return True

    def to_json(self) -> Any:
        """Return the constructor and its arguments; none when the model was handed over loaded."""
        if self.loaded is None:
            return super().to_json()
        described = self.to_json_not_implemented()
        # Keeps the answers of two models apart in LangChain's cache.
        return {**described, "id": [*described["id"], self._identity]}

    @property
    def lc_attributes(self) -> Options:
        """Return what is serialised in another form than it is kept in."""
        as_dict = getattr(self.quantization_config, "to_dict", None)
        return {"quantization_config": as_dict()} if as_dict else {}

    @property
    def _identifying_params(self) -> Options:
        named = ["model", "dtype", "device_map", "context_options", "max_tokens", "stop"]
        if self.base_url is not None:
            named.append("base_url")
        values = {name: getattr(self, name) for name in (*named, *_SAMPLING)}
        more = {"full_attention": self.full_attention, "weight_bits": self.weight_bits}
        return values | {name: value for name, value in more.items() if value}

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Return where the key of a server is read from when an instance is made again."""
        return {"api_key": "SELFEXTEND_RAG_API_KEY"}

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text by the model's own tokenizer, without a start token."""
        return self.llm.prompts.codec.text(text)

    def _llm_named(self, model: str | None) -> BaseLLM:
        """Return the model of a call, which may name another one than this instance's."""
        if model is None or model == self.model:
            return self.llm
        if model not in self._others:
            self._others[model] = self._open(model)
        return self._others[model]

    def call_options(self, stop: str | list[str] | None, call: Mapping[str, Any]) -> Options:
        """Return the options of a call, those of the instance where it has none."""
        own = {name: getattr(self, name) for name in (*_SAMPLING, "max_tokens")}
        stops = [*(self.stop or ()), *([stop] if isinstance(stop, str) else stop or ())]
        return frameworks.answer_options(own, call, {"stop": stops})

    def deadline(self) -> Callable[[], bool] | None:
        """Return what says whether the time of an answer that starts now is over."""
        if self.timeout is None:
            return None
        end = time.monotonic() + self.timeout
        return lambda: time.monotonic() > end

    def in_time(self, answer: Answer) -> Answer:
        """Return the answer, or raise `ModelTimeoutError` if it was broken off."""
        if answer.finish_reason == "cancelled":
            raise ModelTimeoutError(
                f"the answer took more than the timeout of {self.timeout} seconds "
                f"({answer.usage.prompt_tokens} tokens of prompt, "
                f"{answer.usage.completion_tokens} of answer); allow more, or leave timeout out"
            )
        return answer


def core_llm(llm: object) -> BaseLLM:
    """Return the `LongContextLLM` underneath, or itself; anything else is a `TypeError`."""
    inner = llm.llm if isinstance(llm, SelfExtendSettings) else llm
    if isinstance(inner, BaseLLM):
        return inner
    raise TypeError(
        "llm must be a ChatSelfExtend, a SelfExtendLLM, a LongContextLLM or a RemoteLLM, got "
        f"{type(llm).__name__}; a model of transformers goes to model=, with its tokenizer="
    )
