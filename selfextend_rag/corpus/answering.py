"""Answers to questions about one prompt of a corpus: the work of a process, or of a replica."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from torch import OutOfMemoryError

from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.cache.identity import digest
from selfextend_rag.corpus.rows import CorpusRow
from selfextend_rag.documents import Document
from selfextend_rag.errors import (
    MemoryBudgetExceeded,
    SelfExtendError,
    ServerAccessError,
    ServerError,
    in_short,
)
from selfextend_rag.llm.answers.answer import Answer
from selfextend_rag.llm.base import BaseLLM
from selfextend_rag.llm.budget import Space
from selfextend_rag.llm.library import shared_llm
from selfextend_rag.llm.remote import RemoteLLM

_PLANNED = ("group_size", "neighbor_window", "pretraining_window", "total_tokens")


class ReplicaDied(SelfExtendError, RuntimeError):
    """A process that ended while it answered; for want of memory, for instance."""


_MAY_BE_GONE = (ServerError, MemoryBudgetExceeded, OutOfMemoryError, ReplicaDied)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by name, to be opened where the work is done.

    Args:
        model: hub id, folder or ``"bundled"``; of a server, its name there.
        base_url: where a server's API begins, if one has the model.
        loading: options of ``LongContextLLM.from_pretrained`` that decide about the weights.
        context: options of `LongContextLLM`, or of `RemoteLLM`.
    """

    model: str | None = BUNDLED
    base_url: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> BaseLLM:
        """Return the model, loaded or connected to."""
        if self.base_url is not None:
            return RemoteLLM(self.base_url, self.model, **self.context)
        return shared_llm(self.model or BUNDLED, self.loading, self.context)

    def identity(self) -> dict[str, object]:
        """Return what decides about answers, as JSON values.

        Keys do not, and addresses only where a server's one model was not named.
        """
        where = ("api_key", "headers", "at_once", "timeout", "max_retries", "verify", "tokenizer")
        kept = {name: value for name, value in self.context.items() if name not in where}
        name = self.base_url if self.model is None else self.model
        return {"model": name, "loading": dict(self.loading), "context": kept}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of every prompt.

    Args:
        questions: one or several.
        options: of the answers, such as ``max_new_tokens`` and ``json_schema``.
        evidence: look for the passages that answers rest on.
    """

    questions: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    evidence: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """Documents that are read together, and the questions that are still to be answered.

    Args:
        documents: read whole, in this order.
        keys: of the rows to come, by question.
    """

    documents: tuple[Document, ...]
    keys: Mapping[str, str]


def described(document: Document) -> dict[str, str | None]:
    """Return what a row says of a document."""
    return {"id": document.id, "title": document.title, "source": document.source}


def key_of(documents: Sequence[Document], question: str, asked: Asked, model: object) -> str:
    """Return the key of a row: a digest of all that decides what the answer is."""
    named = [
        [x.id, x.title, x.source, digest(x.text), *(p.digest for p in x.pictures)]
        for x in documents
    ]
    parts = {
        "documents": named,
        "question": question,
        "options": {name: asked.options[name] for name in sorted(asked.options)},
        "evidence": asked.evidence,
        "model": model,
        "package": metadata.version("selfextend-rag"),
    }
    return digest(json.dumps(parts, sort_keys=True, default=str))


def answer_unit(llm: BaseLLM, unit: Unit, asked: Asked) -> list[CorpusRow]:
    """Return a row for each question of a unit; what goes wrong with one is said in its row."""
    rows: list[CorpusRow] = []
    questions = list(unit.keys)
    begun = time.perf_counter()
    try:
        space = Space(max_new_tokens=asked.options.get("max_new_tokens"))
        reading = llm.read(unit.documents, question=questions, **space)
    except Exception as error:  # noqa: BLE001 - of one unit; it is in its rows
        return [failed_row(unit, question, error) for question in questions]
    for question in questions:
        try:
            answer = reading.ask(question, evidence=asked.evidence, **asked.options)
            rows.append(_row(unit, question, answer, asked, time.perf_counter() - begun))
        except Exception as error:  # noqa: BLE001 - of one question; it is in its row
            rows.append(failed_row(unit, question, error))
        begun = time.perf_counter()
    return rows


def failed_row(unit: Unit, question: str, error: BaseException) -> CorpusRow:
    """Return the row of a question that has no answer."""
    known = isinstance(error, SelfExtendError)
    text = str(error) if known else f"{type(error).__name__}: {in_short(error)}"
    gone = isinstance(error, _MAY_BE_GONE) and not isinstance(error, ServerAccessError)
    return CorpusRow(
        key=unit.keys[question],
        documents=[described(document) for document in unit.documents],
        question=question,
        status="failed",
        error=text,
        kind=type(error).__name__,
        again=gone or not known,
    )


def _row(unit: Unit, question: str, answer: Answer, asked: Asked, seconds: float) -> CorpusRow:
    plan = answer.plan.to_dict()
    row: dict[str, Any] = {
        "key": unit.keys[question],
        "documents": [described(document) for document in unit.documents],
        "question": question,
        "status": "answered",
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.usage.prompt_tokens,
        "cached_tokens": answer.usage.cached_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "plan": {name: plan[name] for name in _PLANNED},
        "evidence": [passage.to_dict() for passage in answer.evidence],
        "seconds": seconds,
    }
    if asked.options.get("json_schema") is not None:
        if answer.complete:
            row["value"] = json.loads(answer.text)
        else:
            cut = f"the answer was cut off after {answer.usage.completion_tokens} tokens"
            error = f"{cut}, before its JSON was whole; allow more by max_new_tokens"
            row |= {"status": "failed", "kind": "cut off", "error": error}
    return CorpusRow(**row)
