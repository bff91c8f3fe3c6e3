"""From token ids to a stream of text: what every way of asking goes through."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.documents import Document
from selfextend_rag.engine import (
    CachedPrefix,
    Engine,
    FinishReason,
    Generation,
    GenerationSettings,
    Usage,
)
from selfextend_rag.engine.engine import Cancelled, Progress, as_function
from selfextend_rag.evidence import AnswerWatch, Evidence, TokenRanges, find_evidence
from selfextend_rag.llm.claims import MemoryClaims
from selfextend_rag.llm.stream import Answer, AnswerReason, TextStream
from selfextend_rag.output.reader import FREE, CallReader, OutputFormat, TextReader
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.prompts import PromptBuilder


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The documents at a prompt's beginning, and what its tokens hold of them."""

    documents: tuple[Document, ...]
    ranges: TokenRanges


class TextRunner:
    """Runs prompts on an engine and gives their answers as text.

    Args:
        engine: the model.
        prompts: its prompts and their tokens.
        claims: what memory there is for them.
    """

    def __init__(self, engine: Engine, prompts: PromptBuilder, claims: MemoryClaims) -> None:
        self.engine = engine
        self.prompts = prompts
        self.claims = claims

    def settings(self, options: Mapping[str, Any], *, framed: bool) -> GenerationSettings:
        """Return generation settings, with the model's own end tokens and stop texts by default.

        Args:
            options: fields of `GenerationSettings`.
            framed: the prompt puts a question in the form of ``prompts``, whose answers end in
                that form's way.

        Raises:
            TypeError: an option is none of `GenerationSettings`.
            ValueError: an option is out of range.
        """
        default_stop = self.prompts.answer_stops if framed else ()
        settings = GenerationSettings(**{"stop": default_stop, **options})
        if settings.stop_token_ids is not None:
            return settings
        end = self.prompts.codec.tokenizer.eos_token_id
        ends = dict.fromkeys((*self.engine.end_tokens(), *(() if end is None else (end,))))
        return replace(settings, stop_token_ids=tuple(ends))

    def stream(
        self,
        tokens: Sequence[int],
        settings: GenerationSettings,
        plan: ContextPlan,
        *,
        framed: bool,
        form: OutputFormat = FREE,
        prefix: CachedPrefix | None = None,
        reuse: PrefixStore | None = None,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        sources: Sources | None = None,
    ) -> TextStream:
        """Start answering and return the text as it comes.

        With ``sources``, the answer comes with its evidence in them.
        """
        also_cancelled = as_function(cancelled)
        whole = replace(plan, turns=1, reserve_tokens=0, max_new_tokens=settings.max_new_tokens)
        fresh = len(tokens) - (0 if prefix is None else len(prefix))

        def work(closed: threading.Event) -> Generator[str, None, Answer]:
            watch = None if sources is None else AnswerWatch(len(tokens))
            generation = self.engine.generate(
                tokens,
                settings,
                prefix=prefix,
                reuse=reuse,
                extension=plan.settings,
                chunk_size=plan.chunk_size,
                constraint=None if form.grammar is None else form.grammar.start(),
                progress=progress,
                cancelled=lambda: closed.is_set() or also_cancelled(),
                watch=None if watch is None else watch.watching,
                claim=lambda cache: self.claims.claim(
                    whole, fresh, cache, reading=prefix is not None
                ),
            )
            reader = (
                TextReader(self.prompts, settings, form, framed)
                if form.calls is None
                else CallReader(self.prompts, settings, form)
            )
            return _answer(generation, reader, plan, watch, sources)

        return TextStream(work)


def _answer(
    generation: Generation,
    reader: TextReader | CallReader,
    plan: ContextPlan,
    watch: AnswerWatch | None,
    sources: Sources | None,
) -> Generator[str, None, Answer]:
    """Yield text until the tokens end or a stop text does; return all of it."""
    pieces: list[str] = []
    with generation:
        for token in generation:
            pieces.append(reader.push(token))
            if watch is not None:  # the token that completes a stop text is no part of the answer
                watch.answer_tokens = max(1, len(pieces) - reader.stopped)
            if pieces[-1]:
                yield pieces[-1]
            if reader.stopped:
                break
    pieces.append(reader.finish())
    if pieces[-1]:
        yield pieces[-1]
    evidence = _evidence(watch, sources)
    return whole_answer(reader, pieces, generation.finish_reason, generation.usage, plan, evidence)


def whole_answer(
    reader: TextReader | CallReader,
    pieces: Sequence[str],
    finish_reason: FinishReason | None,
    usage: Usage,
    plan: ContextPlan,
    evidence: tuple[Evidence, ...] = (),
) -> Answer:
    """Return an answer that has ended, from its pieces and what the engine says of it."""
    reason: AnswerReason | None = "stop" if reader.stopped else finish_reason
    assert reason is not None
    calls, unfinished = reader.calls()
    return Answer(
        text="".join(pieces),
        finish_reason="tool_calls" if calls and reason == "stop" else reason,
        usage=usage,
        plan=plan,
        tool_calls=calls,
        unfinished_call=unfinished,
        evidence=evidence,
    )


def _evidence(watch: AnswerWatch | None, sources: Sources | None) -> tuple[Evidence, ...]:
    if watch is None or watch.mass is None or sources is None:
        return ()
    return find_evidence(watch.mass, sources.ranges, sources.documents)
