"""The same question to the same model twice: about whole documents, and retrieved passages."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.evals.comparison import Asked, Retrieval
from selfextend_rag.evals.comparison.fitting import default_words, fitting_places
from selfextend_rag.evals.comparison.passages import Index
from selfextend_rag.evals.comparison.places import found_of
from selfextend_rag.llm import Answer, BaseReading
from selfextend_rag.serve.api.answering import refusing
from selfextend_rag.serve.api.reply import having_read
from selfextend_rag.serve.api.requests import JsonObject
from selfextend_rag.serve.events import ModelResponse, Stream
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web.asking import Asking, Events, asked_in, evidence_of, stream_of
from selfextend_rag.serve.web.bodies import CompareRequest


def router(served: Served) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    async def compare(body: CompareRequest, watch: Watch) -> Stream:
        asking = Asking(served, body, asked_in(body))
        await asking.check()
        found = await asyncio.to_thread(_retrieved, served, asking, body)
        return stream_of(compared(served, asking, body, found), watch)

    @routes.post("/compare")
    async def to_compare(request: Request) -> Response:
        return ModelResponse(served, request, CompareRequest, compare)

    return routes


async def compared(served: Served, asking: Asking, body: CompareRequest, found: _Found) -> Events:
    """Yield the progress of the reading, then both answers with what they took and rested on.

    Both have the same space for the answer. Seconds are from documents that nobody has read to the
    answer: of a reading that is kept, those that it took are counted.
    """
    async with aclosing(asking.progress()) as events:
        async for each in events:
            yield each
    answer = asking.counted(await _asked(asking.reading, asking, body, evidence=True))
    served.metrics.count(answer.usage)
    passages = await served.llm.aread(
        found.documents,
        max_new_tokens=asking.longest,
        question_reserve=len(served.llm.prompts.question(body.question)),
    )
    other = await _asked(passages, asking, body, evidence=False)
    served.metrics.count(having_read(other, passages.plan.prompt_tokens).usage)
    whole = _side(asking.reading, answer, 0.0)
    whole["evidence"] = evidence_of(answer.evidence, asking.documents)
    retrieved = _side(passages, other, found.seconds)
    retrieved["passages"] = found.passages
    yield "compared", {"whole": whole, "retrieved": retrieved, "retriever": "bm25"}


@dataclass(frozen=True, slots=True)
class _Found:
    """What retrieval found: to be read, as the page shows it, and the seconds it took."""

    documents: list[Document]
    passages: list[JsonObject]
    seconds: float


def _retrieved(served: Served, asking: Asking, body: CompareRequest) -> _Found:
    documents, llm = asking.read_documents, served.llm
    with refusing("question"):
        words = default_words(
            llm,
            documents,
            [body.question],
            passages=body.pieces,
            answer_tokens=asking.longest,
        )
        index = Index(documents, Retrieval(passages=body.pieces), words)
        started = time.perf_counter()
        scores = dict(index.ranked(Asked(body.question)))  # the best first
        seconds = time.perf_counter() - started
        places = fitting_places(
            llm, index, body.question, list(scores), answer_tokens=asking.longest
        )
    files = list(asking.documents)
    passages = [_shown(index, place, scores[place], files) for place in places]
    return _Found(index.read(places), passages, seconds)


def _shown(index: Index, place: int, score: float, files: list[str]) -> JsonObject:
    """Return a passage without the white space around it, and where it is."""
    number = index.passages[place].document
    document, found = index.documents[number], found_of(index, place, score, [place])
    return {
        "file_id": files[number],
        "title": document.title,
        "start": found.start,
        "end": found.end,
        "text": found.text,
        "score": found.score,
        "location": document.location(found.start, found.end),
    }


async def _asked(
    reading: BaseReading, asking: Asking, body: CompareRequest, *, evidence: bool
) -> Answer:
    """Return an answer, which ends early where the task is cancelled."""
    stream = await in_thread(
        lambda: reading.stream(body.question, max_new_tokens=asking.longest, evidence=evidence)
    )
    async with stream:
        return await stream.aanswer()


def _side(reading: BaseReading, answer: Answer, searched: float) -> JsonObject:
    used = answer.usage
    return {
        "text": answer.text,
        "seconds": searched + reading.seconds + used.prefill_seconds + used.decode_seconds,
        "tokens_read": used.prompt_tokens,
    }
