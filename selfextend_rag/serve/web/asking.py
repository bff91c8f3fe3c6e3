"""Reading documents and answering questions about them, as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.evidence import Evidence
from selfextend_rag.llm import Answer, Reading
from selfextend_rag.output.schema import schema_of
from selfextend_rag.serve.answering import refusing
from selfextend_rag.serve.errors import bad_request
from selfextend_rag.serve.reply import usage_of
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web.bodies import AskRequest, OfFiles
from selfextend_rag.serve.web.documents import documents_of
from selfextend_rag.serve.web.pace import Pace
from selfextend_rag.serve.web.streams import Events, JsonObject, streamed


def router(served: Served) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.post("/read")
    async def read(body: OfFiles, request: Request) -> Response:
        return await streamed(served, request, begin_read(served, body))

    @routes.post("/ask")
    async def ask(body: AskRequest, request: Request) -> Response:
        return await streamed(served, request, begin_ask(served, body))

    return routes


async def begin_read(served: Served, body: OfFiles) -> Events:
    """Return the events of a reading, planned: what does not fit is refused.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    asking = Asking(served, body)
    await asking.check()
    return asking.read()


async def begin_ask(served: Served, body: AskRequest) -> Events:
    """Return the events of a question, checked and planned.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    if not body.question.strip():
        bad_request("the question is empty", "question")
    asking = Asking(served, body, body.question, [(asked, said) for asked, said in body.history])
    options = _options_of(body)
    await asking.check(options)
    return asking.answer(options)


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
        reading: of the documents, once it is there.

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
        self.reading: Reading | None = None
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
            if readings.find(documents, question, **self.space) is None:
                await asyncio.to_thread(readings.plan, documents, question, **self.space)

    async def read(self) -> Events:
        """Yield the progress of the reading, and how it came out."""
        async with aclosing(self._reading()) as events:
            async for each in events:
                yield each
        assert self.reading is not None  # otherwise it has raised
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
        async with aclosing(self._reading()) as events:
            async for each in events:
                yield each
        reading = self.reading
        assert reading is not None  # otherwise it has raised
        options = {"max_new_tokens": self.longest, "history": self._history, **options}
        with refusing("question"):
            stream = await in_thread(lambda: reading.stream(self._question, **options))
        async with stream:
            async for text in stream:
                yield "text", {"text": text}
            answer = await stream.aanswer()
        self._served.metrics.count(answer.usage)
        seconds = time.perf_counter() - self._started
        yield "answer", {**answer_of(answer, self.documents), "seconds": seconds}

    async def _reading(self) -> Events:
        """Yield the progress of the reading, which is then there; none if it was kept."""
        loop, pace = asyncio.get_running_loop(), Pace()
        reported: asyncio.Queue[JsonObject | None] = asyncio.Queue()

        def note(done: int, total: int) -> None:  # in the model's thread
            left = pace.seconds_left(done, total)
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
            self.reading = await coming
        finally:
            coming.cancel()  # of no effect if it has ended

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
