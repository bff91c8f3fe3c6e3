"""What integrations into frameworks share: options, models by any name, documents that fit."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from selfextend_rag.engine import answer_options
from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.llm.library import shared_llm
from selfextend_rag.llm.llm import LongContextLLM, Origin
from selfextend_rag.llm.options import translated
from selfextend_rag.output.schema import schema_of

_CONTEXT = set(list(inspect.signature(LongContextLLM).parameters)[2:])  # not model and tokenizer
_AS_STORED = ("dtype", "auto")
_T = TypeVar("_T")

__all__ = [
    "answer_options",
    "fit_or_rank",
    "open_llm",
    "schema_of",
    "schema_request",
    "sort_options",
]


class OptionError(TypeError, ValueError):
    """An option that is not known, or does not go with the others; pydantic takes it as its own."""


def sort_options(options: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return a constructor's options, those of `LongContextLLM` gathered in ``context_options``.

    Options of other classes are taken under their names here, see `translated`. What is neither of
    the ``fields`` nor of `LongContextLLM` is an `OptionError`.
    """
    known = set(fields)
    options = translated(options, known | _CONTEXT, OptionError)
    if unknown := sorted(options.keys() - known - _CONTEXT):
        raise OptionError(
            f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))} and "
            f"those of LongContextLLM: {', '.join(sorted(_CONTEXT))}"
        )
    own = {name: options[name] for name in options if name not in _CONTEXT}
    if context := {name: options[name] for name in options if name in _CONTEXT}:
        own["context_options"] = {**(own.get("context_options") or {}), **context}
    return own


def open_llm(
    model: Any, tokenizer: Any, loading: Mapping[str, Any], context: Mapping[str, Any]
) -> LongContextLLM:
    """Return the model that a user means, by any name.

    Args:
        model: a hub id, a folder or ``"bundled"``, see `shared_llm`; a model of transformers, with
            its ``tokenizer``; or a `LongContextLLM`.
        loading: options of ``from_pretrained``, and a ``quantization_config``.

    Raises:
        ModelLoadError: there is no such model.
        OptionError: an option would change a model that is loaded, or a tokenizer is missing or is
            one too many.
    """
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise OptionError("tokenizer goes with a loaded model; a folder or hub id has its own")
        options = dict(loading)
        if (quantization := options.pop("quantization_config", None)) is not None:
            more = {**options["model_options"], "quantization_config": quantization}
            options["model_options"] = more
        return shared_llm(model, options, context)
    made = model.origin if isinstance(model, LongContextLLM) else None
    had = {} if made is None else {**made.loading, **made.context}
    asked = {name: value for name, value in loading.items() if value} | dict(
        context if isinstance(model, LongContextLLM) else {}
    )
    changed = {
        name
        for name, value in asked.items()
        if (name, value) != _AS_STORED and (name not in had or had[name] != value)
    }
    if isinstance(model, LongContextLLM) and tokenizer is not None:
        changed.add("tokenizer")
    if changed:
        raise OptionError(
            f"{', '.join(sorted(changed))} can't be changed on a model that is loaded; set it "
            "where the model is made, or name the model instead"
        )
    if isinstance(model, LongContextLLM):
        return model
    if tokenizer is None:
        raise OptionError("a model that is loaded needs its tokenizer; give tokenizer= too")
    llm = LongContextLLM(model, tokenizer, **context)
    llm.origin = Origin(None, {}, dict(context))
    return llm


def fit_or_rank(
    documents: Sequence[_T],
    *,
    check: Callable[[Sequence[_T]], object],
    size: Callable[[_T], int],
    rank: Callable[[Sequence[_T]], Sequence[_T]] | None,
) -> tuple[list[_T], list[_T]]:
    """Return all documents if they fit, or else the most relevant ones that do, and the others.

    Args:
        documents: their names.
        check: plans a prompt of some; raises `ContextBudgetExceeded` if it is too long.
        size: the tokens of one, to choose by.
        rank: puts the most relevant first; None if what does not fit is an error.

    Raises:
        ContextBudgetExceeded: not all fit and that is an error, or not one does.
    """
    try:
        check(documents)
        return list(documents), []
    except ContextBudgetExceeded as error:
        if rank is None:
            raise
        space, needed = error.available, error.needed
    ranked = rank(documents)
    sizes = [size(document) for document in ranked]
    space -= needed - sum(sizes)  # what the question, the answer and the frame take
    kept: list[_T] = []
    for document, tokens in zip(ranked, sizes, strict=True):
        if tokens <= space:
            kept.append(document)
            space -= tokens
    kept = kept or list(ranked[:1])
    while True:
        try:
            check(kept)
            return kept, [document for document in ranked if document not in kept]
        except ContextBudgetExceeded:  # joined, texts may take a token more
            if len(kept) == 1:
                raise
            kept.pop()


def schema_request(schema: Mapping[str, object]) -> str:
    """Return what asks for JSON of a schema; last in a prompt, what is before it is read once."""
    return f"Answer with a JSON object of this schema: {json.dumps(schema, ensure_ascii=False)}"
