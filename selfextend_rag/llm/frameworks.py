"""What integrations into frameworks share: options, models by any name, documents that fit."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from selfextend_rag.documents import Document, Location, Picture, Remark
from selfextend_rag.documents.document import text_id
from selfextend_rag.documents.encoding import normalize_newlines
from selfextend_rag.documents.pictures.reader import picture_of
from selfextend_rag.engine import answer_options
from selfextend_rag.errors import ContextBudgetExceeded, DocumentError
from selfextend_rag.llm.base import BaseLLM, Origin
from selfextend_rag.llm.library import shared_llm
from selfextend_rag.llm.llm import LongContextLLM
from selfextend_rag.llm.options import translated
from selfextend_rag.llm.remote import RemoteLLM
from selfextend_rag.output.schema import schema_of
from selfextend_rag.text.messages import data_of_url

_CONTEXT = set(list(inspect.signature(LongContextLLM).parameters)[2:])  # not model and tokenizer
_OF_SERVERS = ("api_key", "max_retries")  # options of the classes, for ``RemoteLLM``
_REMOTE = set(list(inspect.signature(RemoteLLM).parameters)[2:]) - {
    *_OF_SERVERS,
    "tokenizer",
    "timeout",
}
_AS_STORED = ("dtype", "auto")
_MERGED_ROLES = frozenset(("system", "user", "assistant"))
_T = TypeVar("_T")
Metadata = Mapping[str, Any]

FILE_NOTES = ("remarks", "locations", "pictures", "text_id")
"""The metadata that `file_notes` returns; a model need not read it."""

__all__ = [
    "FILE_NOTES",
    "OptionError",
    "answer_options",
    "connect_llm",
    "core_document",
    "file_notes",
    "fit_or_rank",
    "joined",
    "joined_content",
    "merged_messages",
    "number",
    "of_a_passage",
    "open_llm",
    "picture",
    "picture_part",
    "schema_of",
    "schema_request",
    "sort_options",
]


class OptionError(TypeError, ValueError):
    """An option that is not known, or does not go with the others; pydantic takes it as its own."""


def sort_options(options: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return a constructor's options, those of `LongContextLLM` gathered in ``context_options``.

    With a ``base_url`` they are those of `RemoteLLM`. Options of other classes are taken under
    their names here, see `translated`. What is neither of the ``fields`` nor of the model is an
    `OptionError`.
    """
    known = set(fields)
    remote = options.get("base_url") is not None
    context_names = _REMOTE if remote else _CONTEXT
    options = translated(options, known | context_names, OptionError)
    if unknown := sorted(options.keys() - known - context_names):
        raise OptionError(
            f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))} and "
            f"those of {'RemoteLLM' if remote else 'LongContextLLM'}: "
            f"{', '.join(sorted(context_names))}"
        )
    own = {name: options[name] for name in options if name not in context_names}
    if context := {name: options[name] for name in options if name in context_names}:
        own["context_options"] = {**(own.get("context_options") or {}), **context}
    return own


def connect_llm(
    base_url: str,
    model: object,
    tokenizer: Any,
    loading: Mapping[str, Any],
    options: Mapping[str, Any],
) -> RemoteLLM:
    """Return the model of a server, for a ``base_url``.

    Args:
        base_url: where the server's API begins.
        model: its name there; None for the only one.
        tokenizer: the model's, or the hub id or folder that has it; None to look for it.
        loading: options of ``from_pretrained``, which have nothing to act on here.
        options: of `RemoteLLM`; None counts as not given.

    Raises:
        OptionError: an option is about loading weights, or the model is loaded already.
        ServerError: there is no such server or model there.
    """
    if not isinstance(model, str | None):
        raise OptionError(
            f"base_url asks a server, and model is its name there, got {type(model).__name__}"
        )
    if loads := sorted(x for x, value in loading.items() if value and (x, value) != _AS_STORED):
        raise OptionError(f"{', '.join(loads)} can't be set from here: base_url asks a server")
    given = {name: value for name, value in options.items() if value is not None}
    return RemoteLLM(base_url, model, tokenizer=tokenizer, **given)


def number(name: str | None, value: object) -> object:
    """Return a number, or refuse what only looks like one, which pydantic would convert.

    Raises:
        OptionError: it is a text or a truth value.
    """
    if isinstance(value, str | bytes | bool):
        raise OptionError(f"{name} must be a number, got {value!r}")
    return value


def open_llm(
    model: Any, tokenizer: Any, loading: Mapping[str, Any], context: Mapping[str, Any]
) -> BaseLLM:
    """Return the model that a user means, by any name.

    Args:
        model: a hub id, a folder or ``"bundled"``, see `shared_llm`; a model of transformers, with
            its ``tokenizer``; or a `LongContextLLM` or `RemoteLLM`.
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
    made = model.origin if isinstance(model, BaseLLM) else None
    had = {} if made is None else {**made.loading, **made.context}
    asked = {name: value for name, value in loading.items() if value} | dict(
        context if isinstance(model, BaseLLM) else {}
    )
    changed = {
        name
        for name, value in asked.items()
        if (name, value) != _AS_STORED and (name not in had or had[name] != value)
    }
    if isinstance(model, BaseLLM) and tokenizer is not None:
        changed.add("tokenizer")
    if changed:
        raise OptionError(
            f"{', '.join(sorted(changed))} can't be changed on a model that is loaded; set it "
            "where the model is made, or name the model instead"
        )
    if isinstance(model, BaseLLM):
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


def merged_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with those of one role in a row as one, a blank line between.

    Most chat templates, and the plain form, want roles that alternate. Messages with calls and
    results of tools are left as they are.
    """
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        texts = (last.get("content"), message.get("content"))
        same = last.get("role") == message.get("role") in _MERGED_ROLES
        if same and not ("tool_calls" in last or "tool_calls" in message):
            last["content"] = joined_content(*texts)
        else:
            merged.append(dict(message))
    return merged


def joined_content(first: Any, second: Any) -> Any:
    """Return the contents of two messages as one, a blank line between: text, or parts of it."""
    if not first or not second:
        return first or second or ""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    parts = ([_text_part(x)] if isinstance(x, str) else list(x) for x in (first, second))
    before, after = parts
    return [*before, _text_part("\n\n"), *after]


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def picture(data: bytes | str, name: str = "the picture") -> Picture:
    """Return the picture in the bytes of a file, or in a ``data:`` URL; nothing is fetched.

    Raises:
        DocumentError: it is no one picture, damaged or too large, or another URL.
    """
    return picture_of(data if isinstance(data, bytes) else data_of_url(data), name)


def picture_part(data: bytes | str) -> dict[str, object]:
    """Return the part of a message that is a picture.

    Args:
        data: the bytes of its file; or a URL, of which ``data:`` alone are read.
    """
    if isinstance(data, bytes):
        return {"type": "image", "image": data}
    return {"type": "image_url", "image_url": {"url": data}}


def schema_request(schema: Mapping[str, object]) -> str:
    """Return what asks for JSON of a schema; last in a prompt, what is before it is read once."""
    return f"Answer with a JSON object of this schema: {json.dumps(schema, ensure_ascii=False)}"


def file_notes(document: Document) -> dict[str, object]:
    """Return what is known of a document's file as metadata, JSON values.

    ``remarks``, ``locations`` and, where there are some, ``pictures`` are lists of what the
    document has. Frameworks copy metadata to parts of a text too; ``text_id`` says in which text
    the locations count.
    """
    pictures = [picture.to_dict() for picture in document.pictures]
    return {
        "remarks": [remark.to_dict() for remark in document.remarks],
        "locations": [asdict(location) for location in document.locations],
        **({"pictures": pictures} if pictures else {}),
        "text_id": text_id(document.text),
    }


def of_a_passage(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata of a document that its passages have too: not where all of it is from."""
    of_the_whole = ("locations", "pictures", "text_id")
    return {name: metadata[name] for name in metadata if name not in of_the_whole}


def core_document(
    text: str, metadata: Metadata, pictures: Sequence[Picture] = (), **named: Any
) -> Document:
    """Return a framework's document as the core's, with what it came with.

    That are the remarks, locations and pictures of `file_notes`, the latter two if the text is
    still the same; or the page that a loader of pages gives in ``page``, ``page_number`` or
    ``page_label``.

    Args:
        text: the text.
        metadata: its metadata; the core's has no `file_notes`.
        pictures: more pictures, before the text.
        named: title, source and id.

    Raises:
        DocumentError: the text is blank and there are no pictures, it holds a lone surrogate, or
            its pictures are of another text.
    """
    text = normalize_newlines(text)
    remarks, locations = _noted(text, metadata, _page_names([metadata])[0])
    taken = FILE_NOTES if "text_id" in metadata else ()
    rest = {name: value for name, value in metadata.items() if name not in taken}
    seen = [*pictures, *_noted_pictures(text, metadata)]
    return Document.from_text(
        text, metadata=rest, remarks=remarks, locations=locations, pictures=seen, **named
    )


def _pictures_of(metadata: Metadata) -> Sequence[Any]:
    values = metadata.get("pictures")
    return values if "text_id" in metadata and isinstance(values, list | tuple) else ()


def _noted_pictures(text: str, metadata: Metadata) -> list[Picture]:
    """Return the pictures that `file_notes` put into metadata."""
    values = _pictures_of(metadata)
    if values and metadata["text_id"] != text_id(text):
        raise DocumentError(
            f"a text has the {len(values)} pictures of another one, of which it is a part or which "
            "was changed; read the whole document, which is not split"
        )
    return [Picture.from_dict(value) for value in values]


def joined(parts: Sequence[tuple[str, Metadata]], between: str) -> tuple[str, dict[str, Any]]:
    """Return texts that are parts of one document as one, with the metadata they agree on.

    Where each part says where it is from, as pages do, so does the whole, by `file_notes`.
    """
    texts = [normalize_newlines(text) for text, _ in parts]
    metadata = [part for _, part in parts]
    common = {
        name: value
        for name, value in metadata[0].items()
        if name not in FILE_NOTES and all(name in x and x[name] == value for x in metadata)
    }
    remarks: dict[Remark, None] = {}
    locations: list[Location] = []
    start, located = 0, True
    for text, about, page in zip(texts, metadata, _page_names(metadata), strict=True):
        own_remarks, own = _noted(text, about, page)
        remarks.update(dict.fromkeys(own_remarks))
        locations += [replace(location, start=location.start + start) for location in own]
        located = located and bool(own)
        start += len(text) + len(between)
    whole = between.join(texts)
    if pictures := [x for about in metadata for x in _pictures_of(about)]:
        raise DocumentError(
            f"the {len(pictures)} pictures of documents that are parts of one can't be put together"
            "; load the file whole, as FileLoader does"
        )
    if not (remarks or located):
        return whole, common
    notes = {
        "remarks": [remark.to_dict() for remark in remarks],
        "locations": [asdict(location) for location in locations] if located else [],
        "text_id": text_id(whole),
    }
    return whole, {**common, **notes}


def _noted(
    text: str, metadata: Metadata, page: str | None
) -> tuple[tuple[Remark, ...], tuple[Location, ...]]:
    """Return the remarks and locations in metadata, or the page for a text that has none."""
    remarks = _values(metadata.get("remarks"), Remark)
    locations = _values(metadata.get("locations"), Location)
    starts = [location.start for location in locations]
    fit = starts == sorted(starts) and starts[-1:] <= [len(text)]
    if not fit or metadata.get("text_id") not in (None, text_id(text)):
        locations = ()
    if not locations and page is not None:
        locations = (Location(0, page),)
    return remarks, locations


def _values(values: object, kind: type[_T]) -> tuple[_T, ...]:
    """Return remarks or locations from JSON values; none where they are something else."""
    try:
        return tuple(kind(**each) for each in values) if isinstance(values, list | tuple) else ()
    except (TypeError, ValueError):  # another loader's metadata, which has the name by chance
        return ()


def _page_names(parts: Sequence[Metadata]) -> list[str | None]:
    """Return what to call the pages that a loader gave one by one; None for what is no page.

    ``page`` counts from 0, as in LangChain's loaders of PDF files, unless the pages show that it
    counts from 1: one is the last of ``total_pages``, or, without that, they are 1, 2, 3 and so on.
    """
    pages = [part.get("page") for part in parts]
    totals = [part.get("total_pages") for part in parts]
    if any(total is not None for total in totals):
        from_one = any(page is not None and page == totals[n] for n, page in enumerate(pages))
    else:
        from_one = len(pages) > 1 and pages == list(range(1, len(pages) + 1))
    return [_page_name(part, 0 if from_one else 1) for part in parts]


def _page_name(part: Metadata, more: int) -> str | None:
    number, page, label = (part.get(name) for name in ("page_number", "page", "page_label"))
    if isinstance(number, int):
        return f"page {number}"
    if isinstance(page, int):
        return f"page {page + more}"
    name = page or label
    return f"page {name}" if isinstance(name, str) and name.strip() else None
