"""Documents that were read once, to be asked many times."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfextend_rag.cache import store
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix
from selfextend_rag.engine.engine import Cancelled, Progress
from selfextend_rag.llm.fingerprint import reading_fingerprint
from selfextend_rag.llm.forms import answer_form
from selfextend_rag.llm.packing import PackedDocuments
from selfextend_rag.llm.runner import Sources, TextRunner
from selfextend_rag.llm.saved import attachment_of
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan


class Reading:
    """Documents as a model has read them; made by ``LongContextLLM.read``.

    It may be asked from several threads; each question starts from the documents alone.

    Attributes:
        documents: what was read.
        plan: the settings it was read under, and the room left for questions.
        seconds: how long the reading took.
    """

    def __init__(
        self,
        runner: TextRunner,
        planner: ContextBudgetPlanner,
        documents: Sequence[Document],
        plan: ContextPlan,
        prefix: CachedPrefix,
        seconds: float,
        packed: PackedDocuments | None = None,
    ) -> None:
        self.documents = tuple(documents)
        self.plan = plan
        self.seconds = seconds
        self._runner = runner
        self._planner = planner
        self._prefix = prefix
        self._packed = packed  # made when it is first needed, if the documents came without it

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that its keys and values take."""
        return self._prefix.cache.nbytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the reading to a file, for ``LongContextLLM.load``, in this process or another.

        The file is safetensors, no pickle, and holds the documents too. It appears whole or not at
        all: a crash leaves what was there before.

        Args:
            path: the file; one that is there is replaced.

        Raises:
            ReadingFileError: it can't be written.
            CacheMismatchError: the model keeps its keys in a way that can't be saved.
            TypeError: metadata of a document are no JSON values.
        """
        runner = self._runner
        store.save(
            Path(path),
            runner.engine.snapshot(self._prefix),
            self._prefix.tokens,
            self._prefix.extension,
            fingerprint=reading_fingerprint(
                runner.engine, runner.prompts, self.plan.pretraining_window
            ),
            capacity=self.plan.total_tokens,
            attachment=attachment_of(self.documents, self.plan, self.seconds),
        )

    def ask(
        self,
        question: str,
        *,
        json_schema: Mapping[str, Any] | None = None,
        evidence: bool = True,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> Answer:
        """Return the answer to a question about the documents.

        Args:
            question: the question alone; the prompt around it is made here.
            json_schema: the answer is JSON that is valid for this schema.
            evidence: find the passages that the answer rests on, see `Evidence`; takes a few
                hundredths of the answering time.
            progress: called after each chunk of the question, from another thread.
            cancelled: ends the answer where it is.
            options: fields of `GenerationSettings`. By default ``max_new_tokens`` are those of the
                plan, and in the plain form, of models without a chat template, ``stop`` is a line
                end.

        Raises:
            ContextBudgetExceeded: question and answer need more room than the plan left.
            SchemaError: the schema holds what can't be enforced; the model has not run.
            ConstraintError: the answer could not be kept to its schema.
        """
        with self.stream(
            question,
            json_schema=json_schema,
            evidence=evidence,
            progress=progress,
            cancelled=cancelled,
            **options,
        ) as stream:
            return stream.answer

    def stream(
        self,
        question: str,
        *,
        json_schema: Mapping[str, Any] | None = None,
        evidence: bool = True,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> TextStream:
        """Return the answer as pieces of text that come as it is generated; see ``ask``."""
        settings = self._runner.settings(
            {"max_new_tokens": self.plan.max_new_tokens, **options}, framed=True
        )
        form = answer_form(self._runner.prompts, settings, json_schema, None)
        asked = self._runner.prompts.question(question)
        tokens = (*self._prefix.tokens, *asked)
        plan = self._planner.plan_within(self.plan, len(tokens), settings.max_new_tokens)
        return self._runner.stream(
            tokens,
            settings,
            plan,
            framed=True,
            form=form,
            prefix=self._prefix,
            progress=progress,
            cancelled=cancelled,
            sources=self._sources() if evidence else None,
        )

    def _sources(self) -> Sources | None:
        """Return what tokens hold of the documents; None if the tokenizer does not tell."""
        if self._packed is None:
            self._packed = self._runner.prompts.packed(self.documents)
        ranges = self._packed.ranges
        return None if ranges is None else Sources(self.documents, ranges)
