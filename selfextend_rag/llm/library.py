"""What is kept between calls: models by their name, and readings by their documents."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.documents import Document
from selfextend_rag.engine import Cancelled, in_thread, is_cancelled
from selfextend_rag.errors import (
    CacheMismatchError,
    ContextBudgetExceeded,
    GenerationCancelled,
    MemoryBudgetExceeded,
    NotOnServer,
)
from selfextend_rag.llm.base import BaseLLM, BaseReading, History, OneInProcess, Origin
from selfextend_rag.llm.budget import Documents, ReadingBudget, Space, as_documents
from selfextend_rag.llm.folder import KeptReading, ReadingFolder, names_of, reading_id
from selfextend_rag.llm.llm import LongContextLLM
from selfextend_rag.llm.reading import Reading
from selfextend_rag.planning import ContextPlan

_Options = Mapping[str, object]

_lock = threading.Lock()
_opened: weakref.WeakSet[LongContextLLM] = weakref.WeakSet()  # by name, and in use

_SECONDS_BETWEEN_LOOKS = 0.1


def shared_llm(
    source: str | os.PathLike[str],
    loading: _Options | None = None,
    context: _Options | None = None,
) -> LongContextLLM:
    """Return a model by name, whose weights are loaded unless they are there.

    Args:
        source: hub id, folder, GGUF file, or ``"bundled"``.
        loading: options of ``LongContextLLM.from_pretrained`` that decide about the weights.
        context: options of `LongContextLLM`; with other ones, weights are shared all the same.

    Raises:
        ModelLoadError: there is no such model.
    """
    wanted = Origin(os.fspath(source), dict(loading or {}), dict(context or {}))
    with _lock:  # also while loading, or two threads would load the same weights
        # Options are compared, not hashed: they may hold dictionaries, and objects of others.
        known = [(llm, llm.origin) for llm in list(_opened) if llm.origin is not None]
        same = [
            (llm, had)
            for llm, had in known
            if (had.name, had.loading) == (wanted.name, wanted.loading)
        ]
        for llm, had in same:
            if had.context == wanted.context:
                return llm
        if same:
            shared = same[0][0]
            llm = LongContextLLM(shared.model, shared.tokenizer, **wanted.context)
        elif wanted.name == BUNDLED:
            llm = LongContextLLM.bundled(**wanted.loading, **wanted.context)
        else:
            llm = LongContextLLM.from_pretrained(source, **wanted.loading, **wanted.context)
        llm.origin = wanted
        _opened.add(llm)
        return llm


class KeptReadings(OneInProcess):
    """The readings of one model that were asked for last, as many as fit a number of bytes.

    It may be used from several threads and event loops; a caller whose documents are being read
    just now waits for that reading. A copy is the object itself; pickled, it begins empty.

    Args:
        llm: the model.
        max_bytes: bytes of keys and values to keep. A reading that takes more is handed out and not
            kept, and while one is made, the others are still there.
        folder: where readings are kept as files too, for later processes; None for memory alone.
        folder_bytes: what these files may take together.

    Raises:
        NotOnServer: a ``folder`` is given for a model on a server.
        ReadingFileError: ``folder`` can't be made.
        ValueError: a number of bytes is out of range.
    """

    def __init__(
        self,
        llm: BaseLLM,
        *,
        max_bytes: int = 2 << 30,
        folder: str | os.PathLike[str] | None = None,
        folder_bytes: int = 16 << 30,
    ) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be 0 or a positive number, got {max_bytes}")
        self.llm = llm
        self.max_bytes = max_bytes
        self.folder: ReadingFolder | None = None
        if folder is not None:
            if not isinstance(llm, LongContextLLM):
                raise NotOnServer(
                    f"{llm.name} keeps what it has read on its server, so there is nothing to keep "
                    "in a folder; leave folder out"
                )
            self.folder = ReadingFolder(llm, folder, folder_bytes)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Document, ...], BaseReading] = OrderedDict()
        self._reading: dict[tuple[Document, ...], threading.Lock] = {}

    def __reduce__(self) -> tuple[object, ...]:
        options: dict[str, Any] = {"max_bytes": self.max_bytes}
        if self.folder is not None:
            options |= {"folder": self.folder.folder, "folder_bytes": self.folder.max_bytes}
        return partial(KeptReadings, **options), (self.llm,)

    @property
    def nbytes(self) -> int:
        """Return the bytes that the kept readings take."""
        with self._lock:
            return sum(reading.nbytes for reading in self._kept.values())

    def get(
        self,
        documents: Documents,
        question: str = "",
        *,
        history: History = (),
        max_new_tokens: int | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> BaseReading:
        """Return a reading of documents with space for a question and its answer.

        There is space for the usual question too, if that fits, so that the reading serves others.
        A kept one is replaced where it has too little, by one with twice what the question takes,
        and where the model or the tokenizer, changed since, would read otherwise.

        Args:
            documents: one or several, each a `Document` or a text.
            question: what it will be asked; blank to keep the usual space for any.
            history: earlier questions that come before it, with their answers.
            max_new_tokens: the length of its answer.
            cancelled: ends the reading between two chunks.
            options: more for ``LongContextLLM.read``.

        Raises:
            ContextBudgetExceeded: documents, question and answer do not fit.
            GenerationCancelled: it was cancelled.
        """
        key = tuple(as_documents(documents))
        asked = self._tokens_of(question, history)
        if (reading := self._found(key, asked, max_new_tokens)) is not None:
            return reading
        ends = is_cancelled(cancelled)
        with self._lock:
            lock = self._reading.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=_SECONDS_BETWEEN_LOOKS):
            if ends():
                raise GenerationCancelled(0, 0)
        try:
            if (reading := self._found(key, asked, max_new_tokens)) is None:
                reading = self._from_folder(key, asked, max_new_tokens)
            if reading is None:
                options |= {"max_new_tokens": max_new_tokens, "cancelled": cancelled}
                reading = self._read(key, asked, options)
                self._keep(key, reading)
                if self.folder is not None and isinstance(reading, Reading):
                    self.folder.save(reading)
            return reading
        finally:
            with self._lock:
                self._reading.pop(key, None)  # who waits holds it, who comes finds the reading
            lock.release()

    async def aget(self, documents: Documents, question: str = "", **options: Any) -> BaseReading:
        """Do as ``get`` with the event loop free; a cancelled task ends the reading too."""
        key = tuple(as_documents(documents))
        asked_to_end, left = is_cancelled(options.pop("cancelled", None)), threading.Event()
        asked = self._tokens_of(question, options.get("history", ()))
        if (reading := self._found(key, asked, options.get("max_new_tokens"))) is not None:
            return reading

        def ends() -> bool:
            return left.is_set() or asked_to_end()

        return await in_thread(lambda: self.get(key, question, cancelled=ends, **options), left)

    def find(
        self,
        documents: Documents,
        question: str = "",
        *,
        history: History = (),
        max_new_tokens: int | None = None,
    ) -> BaseReading | None:
        """Return the kept reading of documents with space for a question, or None; nothing is read.

        Unlike ``get``, it does not look whether the model has changed since, which takes about 15
        µs a weight; a reading refuses by itself to continue from what another model read.
        """
        key, asked = tuple(as_documents(documents)), self._tokens_of(question, history)
        return self._found(key, asked, max_new_tokens, verified=False)

    def plan(
        self,
        documents: Documents,
        question: str = "",
        *,
        history: History = (),
        max_new_tokens: int | None = None,
    ) -> ContextPlan:
        """Return the plan of the reading that ``get`` would return; the model does not run.

        One that is in the folder alone is not looked at: it may have been read with more space.
        Where memory is short only because other readings are kept, which would go first, the plan
        says nothing of memory.

        Raises:
            ContextBudgetExceeded: documents, question and answer do not fit.
        """
        key, asked = tuple(as_documents(documents)), self._tokens_of(question, history)
        if (reading := self._found(key, asked, max_new_tokens)) is not None:
            return reading.plan
        spare, *exact = self._reserves(asked)
        try:
            return self._planned(key, spare, max_new_tokens)
        except ContextBudgetExceeded:
            if not exact:
                raise
        return self._planned(key, exact[0], max_new_tokens)

    def all(self) -> list[KeptReading]:
        """Return what is known of the readings, those that were used last first."""
        with self._lock:
            here = {reading_id(key): reading for key, reading in self._kept.items()}
        on_disk = {} if self.folder is None else {kept.id: kept for kept in self.folder.all()}
        found = [
            KeptReading(
                name,
                names_of(reading.documents),
                reading.plan.prompt_tokens,
                reading.nbytes,
                in_memory=True,
                on_disk=name in on_disk,
                created=reading.created,
            )
            for name, reading in reversed(here.items())
        ]
        return found + [kept for name, kept in on_disk.items() if name not in here]

    def documents(self, reading: str) -> tuple[Document, ...] | None:
        """Return the documents of a reading, named by its id; None if it is not kept."""
        with self._lock:
            for key in self._kept:
                if reading_id(key) == reading:
                    return key
        return None if self.folder is None else self.folder.documents(reading)

    def remove(self, reading: str) -> bool:
        """Forget a reading, named by its id, and remove its file; return whether there was one."""
        with self._lock:
            keys = [key for key in self._kept if reading_id(key) == reading]
            for key in keys:
                del self._kept[key]
        on_disk = self.folder is not None and self.folder.remove(reading)
        return bool(keys) or on_disk

    def clear(self) -> None:
        """Forget all readings in memory."""
        with self._lock:
            self._kept.clear()

    def _tokens_of(self, question: str, history: History) -> int:
        """Return the tokens of a question after its history; 0 for a blank one."""
        return len(self.llm.prompts.question(question, history)) if question.strip() else 0

    def _found(
        self,
        key: tuple[Document, ...],
        asked: int,
        max_new_tokens: int | None,
        *,
        verified: bool = True,
    ) -> BaseReading | None:
        """Return the kept reading, now the last used one, if it has space for what is asked."""
        answer = self.llm.budget.max_new_tokens if max_new_tokens is None else max_new_tokens
        with self._lock:
            reading = self._kept.get(key)
            if reading is None:
                return None
            try:
                if verified:
                    reading.check_current()
            except CacheMismatchError:  # read again by the model and tokenizer as they are now
                del self._kept[key]
                return None
            if not _has_space(reading, asked + answer):
                return None
            self._kept.move_to_end(key)
            return reading

    def _reserves(self, asked: int) -> list[int]:
        """Return the tokens to keep free for a question: with some to spare, and its own if not."""
        usual = self.llm.budget.question_reserve
        spare = usual if asked <= usual else 2 * asked
        return [spare, asked] if asked else [spare]

    def _planned(
        self, key: tuple[Document, ...], reserve: int, max_new_tokens: int | None
    ) -> ContextPlan:
        budget = self.llm.budget
        space = Space(question_reserve=reserve, max_new_tokens=max_new_tokens)
        try:
            return self.llm.plan(key, **space)
        except MemoryBudgetExceeded:
            if not self.nbytes:  # where there are other readings, they go first
                raise
        anywhere = ReadingBudget(budget.prompts, budget.planner, budget.max_new_tokens)
        return anywhere.planned(key, (), space)[1]

    def _from_folder(
        self, key: tuple[Document, ...], asked: int, max_new_tokens: int | None
    ) -> BaseReading | None:
        """Return the reading in the folder, now kept in memory, if it has space for what is asked.

        Where memory is short, what was kept there goes first, as in `_read_with`.
        """
        if self.folder is None:
            return None
        answer = self.llm.budget.max_new_tokens if max_new_tokens is None else max_new_tokens
        while True:
            try:
                reading = self.folder.load(key)
                break
            except MemoryBudgetExceeded:
                with self._lock:
                    if not self._kept:
                        raise
                    self._kept.popitem(last=False)
        if reading is None or not _has_space(reading, asked + answer):
            return None
        self._keep(key, reading)
        return reading

    def _read(self, key: tuple[Document, ...], asked: int, options: dict[str, Any]) -> BaseReading:
        """Read with space to spare, if that fits."""
        spare, *exact = self._reserves(asked)
        try:
            return self._read_with(key, spare, options)
        except ContextBudgetExceeded:
            if not exact:
                raise
        return self._read_with(key, exact[0], options)

    def _read_with(
        self, key: tuple[Document, ...], reserve: int, options: dict[str, Any]
    ) -> BaseReading:
        """Read; where memory is short, what was kept goes first, the longest unused before all."""
        while True:
            try:
                return self.llm.read(key, question_reserve=reserve, **options)
            except MemoryBudgetExceeded:
                with self._lock:
                    if not self._kept:
                        raise
                    self._kept.popitem(last=False)

    def _keep(self, key: tuple[Document, ...], reading: BaseReading) -> None:
        with self._lock:
            self._kept.pop(key, None)
            if reading.nbytes > self.max_bytes:
                return
            self._kept[key] = reading
            while sum(kept.nbytes for kept in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)


def _has_space(reading: BaseReading, tokens: int) -> bool:
    """Return whether a question and its answer fit after the documents."""
    return reading.plan.extended_window - reading.plan.prompt_tokens >= tokens
