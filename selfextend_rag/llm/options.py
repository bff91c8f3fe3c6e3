"""Options of other classes that run local models, under this package's names.

They are those of transformers' pipelines, of LangChain's ``HuggingFacePipeline`` and
``ChatHuggingFace``, of LlamaIndex's ``HuggingFaceLLM``, and a few of programs that serve local
models. Each is taken under another name, or refused with what to use instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

_RENAMED = {
    **dict.fromkeys(("model_name", "model_id", "model_path", "repo_id"), "model"),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "num_predict"), "max_new_tokens"),
    **dict.fromkeys(("stop_sequences", "stop_strings"), "stop"),
    "torch_dtype": "dtype",
    "device": "device_map",
    "request_timeout": "timeout",
    "is_chat_model": "prompt_form",
}
_VALUES: dict[str, Callable[[Any], Any]] = {
    "device": lambda device: "cpu" if device == -1 else device,
    "is_chat_model": lambda chat: "chat" if chat else "plain",
}
_OF_LOADING = frozenset(
    ("revision", "trust_remote_code", "token", "cache_dir", "attn_implementation")
)
# Of the first one, what is no option here goes to ``model_options``.
_BUNDLES = ("model_kwargs", "generate_kwargs", "pipeline_kwargs", "generation_kwargs")
_WINDOW = (
    "leave it out: the window follows from the model and is stretched as far as max_group_size "
    "allows, and nothing is cut to it; pretraining_window says what a model was trained on"
)
_WINDOWS = ("context_window", "num_ctx", "n_ctx")
_TOKENIZER = (
    "a model by name has its own tokenizer; for another one load both, and give model= and "
    "tokenizer="
)
_ONE = "an answer is one; ask again with another seed"
_BITS = (
    "weight_bits={0} on a CPU, quantization_config=BitsAndBytesConfig(load_in_{0}bit=True) on a GPU"
)
# With the values that ask for what is done anyway.
_INSTEAD: dict[str, tuple[tuple[object, ...], str]] = {
    **dict.fromkeys(_WINDOWS, ((), _WINDOW)),
    "max_length": ((None,), "max_tokens bounds the answer, and a prompt is never cut"),
    "tokenizer_name": ((None,), _TOKENIZER),
    "tokenizer_kwargs": ((None, {}), _TOKENIZER),
    "tokenizer_outputs_to_remove": ((None, []), "the model is given token ids alone"),
    "pipeline": ((), "give model=pipeline.model and tokenizer=pipeline.tokenizer"),
    "stopping_ids": ((None, []), "stop takes texts, and a call takes stop_token_ids"),
    "eos_token_id": ((None,), "stop takes texts, and a call takes stop_token_ids"),
    "streamer": ((None,), "call stream"),
    "batch_size": ((None, 1), "leave it out: prompts run one after another"),
    "load_in_4bit": ((False,), _BITS.format(4)),
    "load_in_8bit": ((False,), _BITS.format(8)),
    "huggingfacehub_api_token": ((None,), 'model_options={"token": ...}'),
    "endpoint_url": ((None,), "give a server's address as base_url"),
    "task": (("text-generation", "conversational"), "this model generates text alone"),
    "backend": (("default", "pt"), "this model runs by torch alone"),
    "return_full_text": ((False, None), "an answer comes without its prompt"),
    "num_return_sequences": ((1, None), _ONE),
    "n": ((1, None), _ONE),
    "num_beams": ((1, None), "answers are greedy with temperature=0, or sampled"),
    "use_cache": ((True, None), "keys are always kept"),
}

Refuse = Callable[[str], Exception]
"""Makes the error of a message."""


def translated(
    options: Mapping[str, Any], known: Collection[str], refuse: Refuse
) -> dict[str, Any]:
    """Return options under this package's names; those that ``known`` has are left as they are.

    Raises:
        Exception: as ``refuse`` makes it; an option can't be had, or is given under two names.
    """
    found: dict[str, Any] = {}
    loading: dict[str, Any] = {}
    for given, value in _flat(options, known, refuse):
        if given in known:
            name = given
        elif given in _OF_LOADING or given.startswith("model_kwargs."):
            loading[given.removeprefix("model_kwargs.")] = value
            continue
        elif given in _WINDOWS and "context_window" in known:
            name = "context_window"
        elif given in _INSTEAD:
            harmless, instead = _INSTEAD[given]
            own = given == "tokenizer_name" and value == found.get("model")
            if own or any(value is each or value == each for each in harmless):
                continue
            raise refuse(f"{given}={value!r} is no option here: {instead}")
        else:
            name = _RENAMED.get(given, given)
            value = _VALUES[given](value) if given in _VALUES else value
        if name == "max_new_tokens" and "max_tokens" in known:
            name = "max_tokens"
        if name in found:
            raise refuse(f"{name} is given twice, once as {given}; give it once")
        found[name] = value
    if (sampled := found.pop("do_sample", None)) is not None and "do_sample" not in known:
        found["temperature"] = (found.get("temperature") or 1.0) if sampled else 0.0
    if loading:
        found["model_options"] = {**(found.get("model_options") or {}), **loading}
    return found


def _flat(
    options: Mapping[str, Any], known: Collection[str], refuse: Refuse
) -> list[tuple[str, Any]]:
    """Return options with the bundles among them opened, the model's name first."""
    flat: list[tuple[str, Any]] = []
    for name, value in options.items():
        if name not in _BUNDLES or name in known:
            flat.append((name, value))
            continue
        if not isinstance(value or {}, Mapping):
            raise refuse(f"{name} must be a dictionary, got {value!r}")
        for inner, own in (value or {}).items():
            here = (
                name != "model_kwargs" or inner in _INSTEAD or inner in _RENAMED or inner in known
            )
            here = here or inner in ("do_sample", "max_new_tokens")
            flat.append((inner if here else f"model_kwargs.{inner}", own))
    return sorted(flat, key=lambda item: _RENAMED.get(item[0], item[0]) != "model")


def refuse_unknown(kind: Callable[..., object], options: Collection[str]) -> None:
    """Raise a TypeError that lists the options of a class or function, if some are none of them."""
    taken = inspect.signature(kind).parameters.values()
    known = {option.name for option in taken if option.kind is not option.VAR_KEYWORD}
    if len(known) == len(taken) and (unknown := sorted(set(options) - known)):
        listed = ", ".join(
            sorted(option.name for option in taken if option.kind is option.KEYWORD_ONLY)
        )
        name = kind.__qualname__.removesuffix(".__init__")
        raise TypeError(f"unknown option {', '.join(unknown)} of {name}; known are {listed}")


def knowing_options(function: _F) -> _F:
    """Return a function that refuses options it does not know by the list of those it does."""

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        refuse_unknown(function, options)
        return function(*arguments, **options)

    return cast("_F", checked)
