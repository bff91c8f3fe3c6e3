"""Readings as files: what is saved beside the keys, and what has to agree to load them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfextend_rag.cache import store
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix, Engine
from selfextend_rag.engine.fingerprint import model_state
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError
from selfextend_rag.llm.fingerprint import documents_digest, reading_fingerprint
from selfextend_rag.llm.prompts import PromptBuilder
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan
from selfextend_rag.positions import SelfExtend


@dataclass(frozen=True, slots=True)
class SavedReading:
    """What `Reading` is made of, from a file."""

    documents: tuple[Document, ...]
    plan: ContextPlan
    prefix: CachedPrefix
    seconds: float


def load_saved(
    path: str | os.PathLike[str],
    engine: Engine,
    prompts: PromptBuilder,
    planner: ContextBudgetPlanner,
    documents: Sequence[Document] | None,
) -> SavedReading:
    """Return what a file of a reading holds; see ``LongContextLLM.load``."""
    saved = store.load(
        Path(path),
        lambda extension: engine.prefill((0,), extension=extension).cache,
        fingerprint=reading_fingerprint(engine, prompts, planner.pretraining_window),
    )
    try:
        about = json.loads(saved.attachment)
        kept = tuple(Document(**values) for values in about["documents"])
        plan = ContextPlan.from_dict(about["plan"])
        seconds = float(about["seconds"])
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptReadingError(f"{path} lacks documents or plan: {error!r}") from error
    if documents is not None and documents_digest(documents) != documents_digest(kept):
        raise CacheMismatchError(
            f"{path} is a reading of other documents: {_named(kept)}, not {_named(documents)}; "
            "read them again"
        )
    _check_settings(path, planner, plan, saved.extension)
    prefix = CachedPrefix(saved.tokens, saved.extension, saved.cache, model_state(engine.model))
    return SavedReading(kept, plan, prefix, seconds)


def attachment_of(documents: Sequence[Document], plan: ContextPlan, seconds: float) -> bytes:
    """Return what a reading is, beside its keys, as bytes to be saved with them.

    Raises:
        TypeError: the metadata of a document are no JSON values.
    """
    kept = []
    for document in documents:
        values = {
            "text": document.text,
            "title": document.title,
            "id": document.id,
            "source": document.source,
            "metadata": dict(document.metadata),
        }
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the metadata of document {document.id} can't be saved, because they are no JSON "
                f"values: {error}; leave them out or make them text"
            ) from error
        kept.append(values)
    about = {"documents": kept, "plan": plan.to_dict(), "seconds": seconds}
    return json.dumps(about).encode()


def _check_settings(
    path: str | os.PathLike[str],
    planner: ContextBudgetPlanner,
    plan: ContextPlan,
    extension: SelfExtend | None,
) -> None:
    """Refuse a reading that would now be read under other settings."""
    fresh = planner.plan(
        plan.prompt_tokens, plan.max_new_tokens, reserve_tokens=plan.reserve_tokens
    )
    if not plan.settings == extension == fresh.settings:
        raise CacheMismatchError(
            f"{path} can't be used here: it was read with {_settings(extension)}, and would now be "
            f"read with {_settings(fresh.settings)}; set these, or read the documents again"
        )


def _settings(extension: SelfExtend | None) -> str:
    if extension is None:
        return "plain attention"
    return f"group_size {extension.group_size} and neighbor_window {extension.neighbor_window}"


def _named(documents: Sequence[Document]) -> str:
    return ", ".join(document.title or document.id for document in documents)
