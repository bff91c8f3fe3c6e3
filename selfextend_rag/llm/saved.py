"""Readings as files: what is saved besides the keys, and what has to agree to load them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfextend_rag.cache import persist
from selfextend_rag.cache.identity import digest, model_state, token_fingerprint
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix
from selfextend_rag.errors import CacheMismatchError, CorruptReadingError
from selfextend_rag.llm.answers.runner import TextRunner
from selfextend_rag.llm.ledger import with_garbage_collected
from selfextend_rag.planning import ContextPlan, MapPlanner
from selfextend_rag.planning.memory import format_bytes
from selfextend_rag.planning.refusals import no_memory
from selfextend_rag.positions import PositionMap, SelfExtend
from selfextend_rag.text.prompts import Prompt

if TYPE_CHECKING:
    from selfextend_rag.llm.llm import LongContextLLM


@dataclass(frozen=True, slots=True)
class ReadDocuments:
    """What a `Reading` is made of; ``packed`` is None where its ranges are not known yet."""

    documents: tuple[Document, ...]
    plan: ContextPlan
    prefix: CachedPrefix
    seconds: float
    packed: Prompt | None = None
    created: float = field(default_factory=time.time)


def save(path: str | os.PathLike[str], read: ReadDocuments, runner: TextRunner) -> None:
    """Write a reading to a file; see ``Reading.save``."""
    persist.save(
        Path(path),
        runner.engine.snapshot(read.prefix),
        read.prefix.tokens,
        read.prefix.settings,
        fingerprint=_fingerprint(runner),
        capacity=read.plan.total_tokens,
        attachment=_attachment(read),
    )


def load(
    path: str | os.PathLike[str], runner: TextRunner, documents: Sequence[Document] | None
) -> ReadDocuments:
    """Return what a file of a reading holds; see ``LongContextLLM.load``."""
    fingerprint = _fingerprint(runner)
    header = persist.header_of(Path(path), fingerprint)
    fitted = with_garbage_collected(lambda: _fitted(path, runner, header))
    saved = persist.load(
        Path(path),
        lambda settings: runner.engine.prefill((0,), settings=settings).cache,
        fingerprint=fingerprint,
    )
    try:
        about = json.loads(saved.attachment)
        kept = tuple(Document.from_dict(values) for values in about["documents"])
        plan = ContextPlan.from_dict(about["plan"])
        seconds, created = float(about["seconds"]), _created(about)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptReadingError(f"{path} lacks documents or plan: {error!r}") from error
    _check_documents(path, kept, kept if documents is None else documents)
    _check_pictures(path, kept, saved.tokens, runner)
    _check_settings(path, runner, plan, saved.settings)
    plan = replace(plan, chunk_size=fitted.chunk_size, memory=fitted.memory)  # as they are here
    state = model_state(runner.engine.model)
    prefix = CachedPrefix(saved.tokens, saved.settings, saved.cache, state)
    return ReadDocuments(kept, plan, prefix, seconds, created=created)


def documents_in(path: Path, llm: LongContextLLM) -> tuple[tuple[Document, ...], int, float]:
    """Return the documents of a saved reading, their tokens, and when they were read.

    Its keys are not looked at.

    Raises:
        CacheMismatchError: another model read them, or in another way.
        CorruptReadingError: the file is damaged, or no reading.
        ReadingFileError: it can't be read.
    """
    attached, header = persist.attachment_in(path, fingerprint(llm))
    try:
        about = json.loads(attached)
        documents = tuple(Document.from_dict(values) for values in about["documents"])
        created = _created(about)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptReadingError(f"{path} lacks documents: {error!r}") from error
    return documents, header.tokens, created


def _created(about: Mapping[str, Any]) -> float:
    """Return when documents were read; 0 in files of releases that did not note it."""
    return float(about.get("created", 0.0))


def fingerprint(llm: LongContextLLM) -> dict[str, str]:
    """Return what a model's readings belong to, but for their documents."""
    return _fingerprint(llm.runner)


def _fingerprint(runner: TextRunner) -> dict[str, str]:
    """Return what a reading belongs to, but for its documents and the figures of its method."""
    engine, prompts, planner = runner.engine, runner.prompts, runner.budget.planner
    # named where it is not SelfExtend, so that readings of earlier releases stay valid
    method = {"method": planner.method} if isinstance(planner, MapPlanner) else {}
    return {
        **token_fingerprint(engine.model, prompts.codec.tokenizer, engine.kv_bits),
        "prompt form": digest(json.dumps(prompts.identity(), default=str, sort_keys=True)),
        "pretraining_window": str(planner.pretraining_window),
        **method,
    }


def _fitted(
    path: str | os.PathLike[str], runner: TextRunner, header: persist.Header
) -> ContextPlan:
    """Return the plan of a saved reading in the memory that there is here, or refuse it."""
    later, window = header.capacity - header.tokens, runner.budget.planner.pretraining_window
    plan = ContextPlan(header.tokens, later, 0, window, header.settings)
    memory = runner.ledger.budget()
    fitted = plan if memory is None else memory.fitted(plan)
    if fitted.fits_memory or fitted.memory is None:
        return fitted
    short = next(device for device in fitted.memory.devices if not device.fits)
    raise no_memory(
        f"{os.fspath(path)} is a reading of {header.tokens} tokens with space for {later} more, "
        f"which need at most {format_bytes(short.needed_bytes)} on {short.name} to be loaded and "
        f"asked, and it has {format_bytes(short.available_bytes or 0)}",
        plan,
        short,
        (
            "release other readings",
            "read fewer documents, or with kv_bits=8 or 4 in place of more, and save that",
            "load it where there is more memory",
        ),
    )


def _attachment(read: ReadDocuments) -> bytes:
    """Return what a reading is, besides its keys, as bytes to be saved with them."""
    kept = [document.to_dict() for document in read.documents]
    for values in kept:
        try:
            json.dumps(values)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the metadata of document {values['id']} can't be saved, because they are no JSON "
                f"values: {error}; leave them out or make them text"
            ) from error
    about = {
        "documents": kept,
        "plan": read.plan.to_dict(),
        "seconds": read.seconds,
        "created": read.created,
    }
    return json.dumps(about).encode()


def _check_documents(
    path: str | os.PathLike[str], there: Sequence[Document], wanted: Sequence[Document]
) -> None:
    """Refuse a reading of other documents: of other ids, titles, texts or order."""
    one, other = (
        [(d.id, d.title, d.text, [(x.start, x.digest) for x in d.pictures]) for d in documents]
        for documents in (there, wanted)
    )
    if one != other:
        named = (", ".join(title or name for name, title, *_ in each) for each in (one, other))
        raise CacheMismatchError(
            f"{path} is a reading of other documents: {', not '.join(named)}; read them again"
        )


def _check_pictures(
    path: str | os.PathLike[str],
    documents: Sequence[Document],
    tokens: Sequence[int],
    runner: TextRunner,
) -> None:
    """Refuse a reading whose pictures another processor made, or this one with other settings."""
    expected = [number for x in documents for number in runner.prompts.picture_numbers(x)]
    if [token for token in tokens if token < 0] != expected:
        raise CacheMismatchError(
            f"{path} is a reading of pictures that another processor made tokens of, or with other "
            "settings; load it with that one, or read the documents again"
        )


def _check_settings(
    path: str | os.PathLike[str], runner: TextRunner, plan: ContextPlan, had: PositionMap | None
) -> None:
    """Refuse a reading that would now be read under other settings."""
    now = runner.budget.planner.plan(
        plan.prompt_tokens, plan.max_new_tokens, reserve_tokens=plan.reserve_tokens
    ).settings
    if not plan.settings == had == now:
        named = [
            f"group_size {x.group_size} and neighbor_window {x.neighbor_window}"
            if isinstance(x, SelfExtend)
            else str(x or "plain attention")
            for x in (had, now)
        ]
        raise CacheMismatchError(
            f"{path} can't be used here: it was read with {named[0]}, and would now be read with "
            f"{named[1]}; set these, or read the documents again"
        )
