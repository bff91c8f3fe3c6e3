"""A chain that answers over whole documents, with the keys of LangChain's retrieval chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.messages import convert_to_messages
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator
from langchain_core.runnables.utils import AddableDict

from langchain_selfextend.chat_models import ChatSelfExtend
from langchain_selfextend.documents import core_document, whole_documents
from langchain_selfextend.messages import JsonObject, core_messages
from langchain_selfextend.settings import (
    Options,
    SelfExtendSettings,
    core_llm,
    overflow_of_the_framework,
)
from selfextend_rag import (
    Answer,
    KeptReadings,
    LongContextLLM,
    Reading,
    frameworks,
    question_and_history,
)
from selfextend_rag import Document as CoreDocument

_GIVEN_BACK = frozenset(("context", "answer", "evidence", "plan"))

Documents = Document | BaseLoader | BaseRetriever | Iterable[Document | BaseLoader]


def create_full_document_chain(
    llm: SelfExtendSettings | LongContextLLM,
    documents: Documents | None = None,
    *,
    evidence: bool = True,
    max_kept_bytes: int = 2**31,
    **options: Any,
) -> Runnable[JsonObject, JsonObject]:
    """Return a chain that reads whole documents once and answers any number of questions.

    It takes ``{"input": question}`` and gives ``{"input", "context", "answer", "evidence",
    "plan"}``: the documents that were read, the answer, the passages it rests on (documents whose
    metadata has ``document_id``, ``start``, ``end``, ``score`` and ``location``, such as
    ``page 12``, or None) and the settings that were chosen. ``chat_history``, a list of messages,
    may be given too. ``stream`` gives the answer in parts, as it comes.

    Args:
        llm: a `ChatSelfExtend`, `SelfExtendLLM` or `LongContextLLM`.
        documents: documents, loaders, or a retriever, which is asked again for each question; by
            default each call brings its own as ``context``.
        evidence: whether to look for the passages that an answer rests on.
        max_kept_bytes: memory for what was read, to be asked again; see `KeptReadings`.
        options: of the answers, such as ``max_tokens`` and ``temperature``.

    Raises:
        ContextWindowExceeded: documents, history, question and answer do not fit; of a call.
    """
    chain = _FullDocumentChain(llm, documents, evidence, max_kept_bytes, options)
    # It passes the configuration too, to functions that take it; its signature does not say so.
    generator = RunnableGenerator[JsonObject, JsonObject](chain.stream, chain.astream)  # type: ignore[arg-type]
    return generator.with_config(run_name="full_document_chain")


class _FullDocumentChain:
    """What the chain remembers: the model, the documents, and what it has read."""

    def __init__(
        self,
        llm: SelfExtendSettings | LongContextLLM,
        documents: Documents | None,
        evidence: bool,
        max_kept_bytes: int,
        options: Options,
    ) -> None:
        core = core_llm(llm)
        self._model = llm if isinstance(llm, SelfExtendSettings) else ChatSelfExtend(llm=core)
        self._readings = KeptReadings(core, max_bytes=max_kept_bytes)
        self._retriever = documents if isinstance(documents, BaseRetriever) else None
        self._documents: list[Document] | None = None
        self._known_core: list[CoreDocument] | None = None
        if documents is not None and not isinstance(documents, BaseRetriever):
            self._documents = _loaded(documents)
            self._known_core = [core_document(document) for document in self._documents]
        self._options = self._model.call_options(options.pop("stop", None), options)
        self._evidence = evidence

    def stream(self, inputs: Iterator[JsonObject], config: RunnableConfig) -> Iterator[AddableDict]:
        given = _whole(list(inputs))
        yield _echo(given)
        context = self._known(given)
        if self._retriever is not None:
            context = self._retriever.invoke(given["input"], config)
        yield AddableDict(context=context)
        question, reading_options, asking_options = self._asked(given)
        with overflow_of_the_framework():
            reading = self._readings.get(self._core(context), question, **reading_options)
            answering = reading.stream(question, **asking_options)
        with answering:
            for part in answering:
                yield AddableDict(answer=part)
            yield self._end(answering.answer, reading, context)

    async def astream(
        self, inputs: AsyncIterator[JsonObject], config: RunnableConfig
    ) -> AsyncIterator[AddableDict]:
        given = _whole([chunk async for chunk in inputs])
        yield _echo(given)
        context = self._known(given)
        if self._retriever is not None:
            context = await self._retriever.ainvoke(given["input"], config)
        yield AddableDict(context=context)
        question, reading_options, asking_options = self._asked(given)
        with overflow_of_the_framework():
            reading = await self._readings.aget(self._core(context), question, **reading_options)
            answering = reading.stream(question, **asking_options)
        async with answering:
            async for part in answering:
                yield AddableDict(answer=part)
            yield self._end(await answering.aanswer(), reading, context)

    def _known(self, given: JsonObject) -> list[Document]:
        """Return the documents, as far as they do not have to be retrieved."""
        if self._documents is not None or self._retriever is not None:
            return self._documents or []
        if not given.get("context"):
            raise ValueError(
                "there are no documents; give them to create_full_document_chain, or each call "
                'as {"input": ..., "context": [Document(...), ...]}'
            )
        return list(given["context"])

    def _core(self, context: Sequence[Document]) -> list[CoreDocument]:
        return self._known_core or [core_document(document) for document in context]

    def _asked(self, given: JsonObject) -> tuple[str, Options, Options]:
        """Return the question, and options to read the documents for it and to answer it."""
        said = core_messages(convert_to_messages(given.get("chat_history") or []))
        question, history = question_and_history(
            [*said, {"role": "user", "content": given["input"]}]
        )
        reading = {"history": history, "max_new_tokens": self._options.get("max_new_tokens")}
        asking = {"evidence": self._evidence, "cancelled": self._model.deadline()}
        return question, reading, {"history": history, **asking, **self._options}

    def _end(self, answer: Answer, reading: Reading, context: Sequence[Document]) -> AddableDict:
        """Return what is known once the answer is whole; ``answer`` too, if it was empty."""
        answer = self._model.in_time(answer)
        rest = {"evidence": _passages(answer, reading, context), "plan": answer.plan.to_dict()}
        return AddableDict(rest if answer.text else {"answer": "", **rest})


def _loaded(documents: Document | BaseLoader | Iterable[Document | BaseLoader]) -> list[Document]:
    """Return documents, those of loaders whole."""
    several = [documents] if isinstance(documents, Document | BaseLoader) else documents
    found: list[Document] = []
    for each in several:
        found += whole_documents(each.lazy_load()) if isinstance(each, BaseLoader) else [each]
    if not found:
        raise ValueError("there are no documents; the chain needs at least one")
    return found


def _echo(given: JsonObject) -> AddableDict:
    """Return what was given, without what the chain gives: a graph's state has earlier ones."""
    return AddableDict({name: value for name, value in given.items() if name not in _GIVEN_BACK})


def _whole(chunks: Sequence[JsonObject]) -> JsonObject:
    """Return the chain's input, which may come in parts."""
    given: Any = chunks[0]
    for chunk in chunks[1:]:
        given = AddableDict(given) + AddableDict(chunk)
    if not isinstance(given, Mapping) or not isinstance(given.get("input"), str):
        raise ValueError(f'the chain takes {{"input": "a question", ...}}, got {given!r}')
    return dict(given)


def _passages(answer: Answer, reading: Reading, context: Sequence[Document]) -> list[Document]:
    """Return the evidence of an answer as documents, the metadata of their sources kept."""
    read = zip(reading.documents, context, strict=True)
    sources = {core.id: document.metadata for core, document in read}
    names = ("document_id", "start", "end", "score", "location")
    return [
        Document(
            page_content=found.text,
            metadata={
                **frameworks.of_a_passage(sources.get(found.document_id, {})),
                **{name: getattr(found, name) for name in names},
            },
        )
        for found in answer.evidence
    ]
