"""Reading documents and answering questions about them, as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.evidence import Evidence
from selfextend_rag.llm import Answer, BaseReading
from selfextend_rag.output.schema import schema_of
from selfextend_rag.serve.api.answering import is_short_question, refusing, soon
from selfextend_rag.serve.api.reply import having_read, usage_of
from selfextend_rag.serve.api.requests import JsonObject
from selfextend_rag.serve.errors import bad_request
from selfextend_rag.serve.events import ModelResponse, Stream, event
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web.bodies import AskRequest, CompareRequest, OfFiles
from selfextend_rag.serve.web.documents import documents_of
from selfextend_rag.serve.web.pace import Pace

Events = AsyncGenerator[tuple[str, JsonObject], None]
"""Names of events, with JSON values."""


def router(served: Served) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    async def read(body: OfFiles, watch: Watch) -> Stream:
        asking = Asking(served, body)
        await asking.check()
        return stream_of(asking.read(), watch)

    async def ask(body: AskRequest, watch: Watch) -> Stream:
        history = [(asked, said) for asked, said in body.history]
        asking = Asking(served, body, asked_in(body), history)
        options = _options_of(body)
        await asking.check(options)
        return stream_of(asking.answer(options), watch)

    @routes.post("/read")
    async def to_read(request: Request) -> Response:
        return ModelResponse(served, request, OfFiles, read)

    @routes.post("/ask")
    async def to_ask(request: Request) -> Response:
        return ModelResponse(served, request, AskRequest, ask)

    return routes


def asked_in(body: AskRequest | CompareRequest) -> str:
    """Return the question of a request.

    Raises:
        ApiError: it is blank.
    """
    if not body.question.strip():
        bad_request("the question is empty", "question")
    return body.question


def stream_of(events: Events, watch: Watch) -> Stream:
    """Return events as the page takes them; that of an error is called so."""

    async def encoded() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            async for name, data in events:
                if name == "text":
                    watch.speak()
                yield event(data, name)

    return Stream(encoded(), lambda error: event(error.body, "error"))


class Asking:
    """A reading of files, and a question about them.

    Args:
        served: the server.
        body: names the files.
        question: the question; blank for a reading alone.
        history: questions and answers before it.

    Attributes:
        documents: what is read, by the files' ids.
        longest: tokens of the answer at most.

    Raises:
        ApiError: there is no such file.
    """

    def __init__(
        self,
        served: Served,
        body: OfFiles,
        question: str = "",
        history: list[tuple[str, str]] | None = None,
    ) -> None:
        self.documents = documents_of([served.files.get(file_id) for file_id in body.files])
        self._reading: BaseReading | None = None
        self._read_tokens = 0  # of documents that had to be read
        self._served = served
        self._started = time.perf_counter()
        self._question, self._history = question, history or []
        longest = body.max_new_tokens or served.settings.max_new_tokens
        self.longest = longest or served.llm.budget.max_new_tokens

    async def check(self, options: JsonObject | None = None) -> None:
        """Refuse what can't be read or answered; the model does not run.

        Raises:
            ApiError: the message says why.
        """
        llm, readings = self._served.llm, self._served.readings
        documents, question = self.read_documents, self._question
        with refusing("question" if question else "files"):
            if options:
                await asyncio.to_thread(llm.check_options, **options)
            kept = await soon(
                lambda: readings.find(documents, question, **self.space),
                here=is_short_question(question, self._history),
            )
            if kept is None:
                await asyncio.to_thread(readings.plan, documents, question, **self.space)

    @property
    def reading(self) -> BaseReading:
        """Return the reading of the documents, once its progress was taken."""
        assert self._reading is not None
        return self._reading

    async def read(self) -> Events:
        """Yield the progress of the reading, and how it came out."""
        async with aclosing(self.progress()) as events:
            async for each in events:
                yield each
        yield (
            "read",
            {
                "seconds": self.reading.seconds,
                "plan": self.reading.plan.to_dict(),
                "tokens": self.reading.plan.prompt_tokens,
                "nbytes": self.reading.nbytes,
            },
        )

    async def answer(self, options: JsonObject) -> Events:
        """Yield the progress of the reading, the text of the answer, and the answer."""
        async with aclosing(self.progress()) as events:
            async for each in events:
                yield each
        options = {"max_new_tokens": self.longest, "history": self._history, **options}
        with refusing("question"):
            stream = await in_thread(lambda: self.reading.stream(self._question, **options))
        async with stream:
            async for text in stream:
                yield "text", {"text": text}
            answer = self.counted(await stream.aanswer())
        self._served.metrics.count(answer.usage)
        seconds = time.perf_counter() - self._started
        yield "answer", {**answer_of(answer, self.documents), "seconds": seconds}

    def counted(self, answer: Answer) -> Answer:
        """Return an answer that counts as cached what was read before this request."""
        return having_read(answer, self._read_tokens)

    async def progress(self) -> Events:
        """Yield the progress of the reading, which is then there; none if it was kept."""
        loop, pace = asyncio.get_running_loop(), Pace()
        reported: asyncio.Queue[JsonObject | None] = asyncio.Queue()

        def note(done: int, total: int) -> None:  # in the model's thread
            left, self._read_tokens = pace.seconds_left(done, total), total
            figures = {"done": done, "total": total, "seconds_left": left}
            loop.call_soon_threadsafe(reported.put_nowait, figures)

        coming = asyncio.ensure_future(
            self._served.readings.aget(
                self.read_documents, self._question, progress=note, **self.space
            )
        )
        coming.add_done_callback(lambda _: reported.put_nowait(None))
        try:
            while (figures := await reported.get()) is not None:
                yield "progress", figures
            self._reading = await coming
        finally:
            coming.cancel()  # of no effect if it has ended
            await asyncio.wait({coming})
            if not coming.cancelled():
                coming.exception()  # is raised above, or nobody is left to hear it

    @property
    def read_documents(self) -> list[Document]:
        """Return the documents in the order in which they are read."""
        return list(self.documents.values())

    @property
    def space(self) -> JsonObject:
        """Return what a reading has to have space for, as `KeptReadings` takes it."""
        return {"history": self._history, "max_new_tokens": self.longest}


def answer_of(answer: Answer, documents: Mapping[str, Document]) -> JsonObject:
    """Return an answer as JSON values, with what it rests on by the ids of files.

    Args:
        answer: the answer.
        documents: what was read, in order, by the files' ids.
    """
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": usage_of(answer.usage),
        "evidence": evidence_of(answer.evidence, documents),
        "attention": dict(zip(documents, answer.attention, strict=bool(answer.attention))),
    }


def evidence_of(
    evidence: tuple[Evidence, ...], documents: Mapping[str, Document]
) -> list[JsonObject]:
    """Return passages as JSON values, with what is around them and the ids of their files."""
    files = {document.id: file_id for file_id, document in documents.items()}
    return [
        {
            **passage.to_dict(),
            "file_id": files[passage.document_id],
            "before": passage.before,
            "after": passage.after,
        }
        for passage in evidence
    ]


def _options_of(body: AskRequest) -> JsonObject:
    """Return what a question says of its answer, under the names of ``Reading.stream``.

    Raises:
        SchemaError: the schema says nothing of a value.
    """
    options: JsonObject = {
        name: value
        for name in ("temperature", "seed")
        if (value := getattr(body, name)) is not None
    }
    if body.json_schema is not None:
        options["json_schema"] = schema_of(body.json_schema)
    return options
