"""Readings as files: what is saved beside the keys, and what has to agree to load them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from selfextend_rag.cache import persist
from selfextend_rag.cache.identity import digest, model_state, token_fingerprint
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix, Engine
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError, MemoryBudgetExceeded
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan
from selfextend_rag.planning.memory import format_bytes
from selfextend_rag.positions import SelfExtend
from selfextend_rag.text.prompts import PromptBuilder, prompt_state


def reading_fingerprint(
    engine: Engine, prompts: PromptBuilder, pretraining_window: int
) -> dict[str, str]:
    """Return what a reading belongs to, but for its documents, group size and neighbor window."""
    return {
        **token_fingerprint(engine.model, prompts.codec.tokenizer, engine.kv_bits),
        "prompt form": digest(json.dumps(prompts.identity(), default=str, sort_keys=True)),
        "pretraining_window": str(pretraining_window),
    }


def check_prompts(prompts: PromptBuilder, state: tuple[object, ...]) -> None:
    """Refuse to continue from tokens that were made in this state, if it is another one now.

    Raises:
        CacheMismatchError: it is.
    """
    if prompt_state(prompts) != state:
        raise CacheMismatchError(
            "the tokenizer, its special tokens or its chat template have changed since these "
            "documents were read; read them again, or put it back"
        )


def documents_digest(documents: Sequence[Document]) -> str:
    """Return what tells documents from others: their ids, titles and texts, and their order."""
    return digest(json.dumps([(d.id, d.title, d.text) for d in documents]))


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
    budget: ReadingBudget,
    documents: Sequence[Document] | None,
) -> SavedReading:
    """Return what a file of a reading holds; see ``LongContextLLM.load``."""
    prompts, planner = budget.prompts, budget.planner
    fingerprint = reading_fingerprint(engine, prompts, planner.pretraining_window)
    fitted = _fitted(path, budget, persist.header_of(Path(path), fingerprint))
    saved = persist.load(
        Path(path),
        lambda settings: engine.prefill((0,), settings=settings).cache,
        fingerprint=fingerprint,
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
    _check_settings(path, planner, plan, saved.settings)
    plan = replace(plan, chunk_size=fitted.chunk_size, memory=fitted.memory)  # as they are here
    prefix = CachedPrefix(saved.tokens, saved.settings, saved.cache, model_state(engine.model))
    return SavedReading(kept, plan, prefix, seconds)


def _fitted(
    path: str | os.PathLike[str], budget: ReadingBudget, header: persist.Header
) -> ContextPlan:
    """Return the plan of a saved reading in the memory that there is here, before it is read.

    Raises:
        MemoryBudgetExceeded: memory does not hold it.
    """
    settings = {} if header.settings is None else asdict(header.settings)
    plan = ContextPlan(
        header.tokens,
        header.capacity - header.tokens,
        0,
        budget.planner.pretraining_window,
        **settings,
    )
    memory = budget.memory()
    if memory is None:
        return plan
    fitted = memory.fitted(plan)
    if fitted.fits_memory or fitted.memory is None:
        return fitted
    short = next(device for device in fitted.memory.devices if not device.fits)
    assert short.available_bytes is not None
    raise MemoryBudgetExceeded(
        f"{os.fspath(path)} is a reading of {header.tokens} tokens with space for "
        f"{plan.max_new_tokens} more, which need at most {format_bytes(short.needed_bytes)} on "
        f"{short.name} to be loaded and asked, and it has {format_bytes(short.available_bytes)}",
        device=short.name,
        needed_bytes=short.needed_bytes,
        available_bytes=short.available_bytes,
        needed=plan.total_tokens,
        available=0,
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        remedies=(
            "release other readings",
            "read fewer documents, or with kv_bits=8 or 4 in place of more, and save that",
            "load it where there is more memory",
        ),
    )


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
    settings: SelfExtend | None,
) -> None:
    """Refuse a reading that would now be read under other settings."""
    fresh = planner.plan(
        plan.prompt_tokens, plan.max_new_tokens, reserve_tokens=plan.reserve_tokens
    )
    if not plan.settings == settings == fresh.settings:
        raise CacheMismatchError(
            f"{path} can't be used here: it was read with {_settings(settings)}, and would now be "
            f"read with {_settings(fresh.settings)}; set these, or read the documents again"
        )


def _settings(settings: SelfExtend | None) -> str:
    if settings is None:
        return "plain attention"
    return f"group_size {settings.group_size} and neighbor_window {settings.neighbor_window}"


def _named(documents: Sequence[Document]) -> str:
    return ", ".join(document.title or document.id for document in documents)
