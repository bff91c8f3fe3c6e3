"""A chain that answers over whole documents, with the keys of LangChain's retrieval chain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator
from langchain_core.runnables.utils import AddableDict

from langchain_selfextend.chat_models import ChatSelfExtend
from langchain_selfextend.documents import core_document, whole_documents
from langchain_selfextend.messages import JsonObject
from langchain_selfextend.settings import Options, SelfExtendSettings, core_llm
from selfextend_rag import (
    BaseLLM,
    BaseReading,
    KeptReadings,
    TextStream,
    frameworks,
    question_and_history,
)
from selfextend_rag import Document as CoreDocument

_GIVEN_BACK = frozenset(("context", "answer", "evidence", "plan", "usage"))

Documents = Document | BaseLoader | BaseRetriever | Iterable[Document | BaseLoader]


def create_full_document_chain(
    llm: SelfExtendSettings | BaseLLM,
    documents: Documents | None = None,
    *,
    evidence: bool | None = None,
    max_kept_bytes: int = 2**31,
    **options: Any,
) -> Runnable[JsonObject, JsonObject]:
    """Return a chain that reads whole documents once and answers any number of questions.

    It takes ``{"input": question}`` and gives ``{"input", "context", "answer", "evidence",
    "plan", "usage"}``: the documents that were read, the answer, the passages it rests on
    (documents whose metadata has ``document_id``, ``start``, ``end``, ``score`` and ``location``,
    such as ``page 12``, or None; of a picture also ``picture`` and ``region``), the settings that
    were chosen and LangChain's counts of tokens.
    ``chat_history``, a list of messages, may be given too. ``stream`` gives the answer in parts, as
    it comes. Callbacks hear of the model's run as of any chat model's, the reading of the documents
    in it.

    Args:
        llm: a `ChatSelfExtend`, `SelfExtendLLM`, `LongContextLLM` or `RemoteLLM`.
        documents: documents, loaders, or a retriever, which is asked again for each question; by
            default each call brings its own as ``context``.
        evidence: whether to look for the passages that an answer rests on; by default where the
            model runs in this process, because a server does not say them.
        max_kept_bytes: memory for what was read, to be asked again; see `KeptReadings`.
        options: of the answers, such as ``max_tokens`` and ``temperature``.

    Raises:
        ContextWindowExceeded: documents, history, question and answer do not fit; of a call.
    """
    chain = _FullDocumentChain(llm, documents, evidence, max_kept_bytes, options)
    generator = RunnableGenerator[JsonObject, JsonObject](
        chain.stream,  # type: ignore[arg-type]  # takes the configuration, which is passed to it
        chain.astream,  # type: ignore[arg-type]  # the same
    )
    return generator.with_config(run_name="full_document_chain")


class _FullDocumentChain:
    """What the chain remembers: the model, the documents, and what it has read."""

    def __init__(
        self,
        llm: SelfExtendSettings | BaseLLM,
        documents: Documents | None,
        evidence: bool | None,
        max_kept_bytes: int,
        options: Options,
    ) -> None:
        self._model = _chat_of(llm)
        self._readings = KeptReadings(self._model.llm, max_bytes=max_kept_bytes)
        self._retriever = documents if isinstance(documents, BaseRetriever) else None
        self._documents: list[Document] | None = None
        self._known_core: list[CoreDocument] | None = None
        if documents is not None and not isinstance(documents, BaseRetriever):
            self._documents = _loaded(documents)
            self._known_core = [core_document(document) for document in self._documents]
        self._model.call_options(options.get("stop"), _without_stop(options))  # refuses them here
        self._options = options
        self._evidence = self._model.llm.finds_evidence if evidence is None else evidence

    def stream(self, inputs: Iterator[JsonObject], config: RunnableConfig) -> Iterator[AddableDict]:
        given = _whole(list(inputs))
        yield _echo(given)
        context = self._known(given)
        if self._retriever is not None:
            context = self._retriever.invoke(given["input"], config)
        yield AddableDict(context=context)
        said, source = "", _WholeDocuments(self._readings, self._core(context), self._evidence)
        for chunk in self._model.over(source).stream(_said(given), config, **self._options):
            last, said = chunk, said + chunk.text
            if chunk.text:
                yield AddableDict(answer=chunk.text)
        yield _end(last, said, source.documents, context)

    async def astream(
        self, inputs: AsyncIterator[JsonObject], config: RunnableConfig
    ) -> AsyncIterator[AddableDict]:
        given = _whole([chunk async for chunk in inputs])
        yield _echo(given)
        context = self._known(given)
        if self._retriever is not None:
            context = await self._retriever.ainvoke(given["input"], config)
        yield AddableDict(context=context)
        said, source = "", _WholeDocuments(self._readings, self._core(context), self._evidence)
        asked = self._model.over(source)
        async for chunk in asked.astream(_said(given), config, **self._options):
            last, said = chunk, said + chunk.text
            if chunk.text:
                yield AddableDict(answer=chunk.text)
        yield _end(last, said, source.documents, context)

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


class _WholeDocuments:
    """Answers conversations about documents, which are read first if they have not been.

    It is what `ChatSelfExtend` asks in place of its model, so that the run is reported as any.
    """

    def __init__(
        self, readings: KeptReadings, documents: list[CoreDocument], evidence: bool
    ) -> None:
        self.documents = documents
        self._readings = readings
        self._evidence = evidence

    def stream(self, prompt: Sequence[Mapping[str, Any]], **options: Any) -> TextStream:
        question, space = _question(prompt, options)
        reading = self._readings.get(self.documents, question, **space)
        return self._asked(reading, question, space, options)

    async def astream(self, prompt: Sequence[Mapping[str, Any]], **options: Any) -> TextStream:
        question, space = _question(prompt, options)
        reading = await self._readings.aget(self.documents, question, **space)
        return self._asked(reading, question, space, options)

    def _asked(
        self, reading: BaseReading, question: str, space: Options, options: Options
    ) -> TextStream:
        history = space["history"]
        return reading.stream(question, history=history, evidence=self._evidence, **options)


def _question(prompt: Sequence[Mapping[str, Any]], options: Options) -> tuple[str, Options]:
    """Return a question, and what a reading with space for it needs to know."""
    question, history = question_and_history(prompt)
    named = {name: options.get(name) for name in ("max_new_tokens", "cancelled")}
    return question, {"history": history, **named}


def _chat_of(llm: SelfExtendSettings | BaseLLM) -> ChatSelfExtend:
    """Return a chat model that answers as a model does by default."""
    if isinstance(llm, ChatSelfExtend):
        return llm
    core = core_llm(llm)
    if not isinstance(llm, SelfExtendSettings):
        return ChatSelfExtend(llm=core)
    fields = {*SelfExtendSettings.model_fields, "callbacks", "tags", "metadata"} - {"loaded"}
    return ChatSelfExtend(**{name: getattr(llm, name) for name in fields}, llm=llm.loaded)


def _without_stop(options: Options) -> Options:
    return {name: value for name, value in options.items() if name != "stop"}


def _said(given: JsonObject) -> list[BaseMessage]:
    """Return the conversation up to the question."""
    history = convert_to_messages(given.get("chat_history") or [])
    return [*history, HumanMessage(given["input"])]


def _end(
    last: BaseMessage, said: str, read: Sequence[CoreDocument], context: Sequence[Document]
) -> AddableDict:
    """Return what is known once the answer is whole; ``answer`` too, if it was empty."""
    info = last.response_metadata
    evidence = _passages(info.get("evidence", []), read, context)
    usage = getattr(last, "usage_metadata", None)
    rest = {"evidence": evidence, "plan": info["plan"], "usage": usage}
    return AddableDict(rest if said else {"answer": "", **rest})


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


def _passages(
    evidence: Sequence[JsonObject], read: Sequence[CoreDocument], context: Sequence[Document]
) -> list[Document]:
    """Return the evidence of an answer as documents, the metadata of their sources kept."""
    pairs = zip(read, context, strict=True)
    sources = {core.id: document.metadata for core, document in pairs}
    names = ("document_id", "start", "end", "score", "location", "picture", "region")
    return [
        Document(
            page_content=found["text"],
            metadata={
                **frameworks.of_a_passage(sources.get(found["document_id"], {})),
                **{name: found[name] for name in names if name in found},
            },
        )
        for found in evidence
    ]
