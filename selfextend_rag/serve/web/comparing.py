"""The same question to the same model twice: about whole documents, and retrieved passages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.evals.comparison import Asked, Retrieval
from selfextend_rag.evals.comparison.fitting import default_words, fitting_places
from selfextend_rag.evals.comparison.passages import Index
from selfextend_rag.evals.comparison.places import found_of
from selfextend_rag.llm import Answer, Reading
from selfextend_rag.serve.answering import refusing
from selfextend_rag.serve.errors import bad_request
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web.asking import Asking, evidence_of
from selfextend_rag.serve.web.bodies import CompareRequest
from selfextend_rag.serve.web.streams import JsonObject, answered


def router(served: Served) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/compare")
    async def compare(body: CompareRequest, request: Request) -> Response:
        return await answered(served, request, compared(served, body))

    return routes


async def compared(served: Served, body: CompareRequest) -> Response:
    """Return both answers, how long each took, and what each had to rest on.

    Both have the same space for the answer. Seconds are from documents that nobody has read to the
    answer: of a reading that is kept, those that it took are counted.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    if not body.question.strip():
        bad_request("the question is empty", "question")
    asking = Asking(served, body, body.question)
    await asking.check()
    reading = await served.readings.aget(asking.read_documents, body.question, **asking.space)
    answer = await _asked(served, reading, body.question, asking.longest, evidence=True)
    found = await asyncio.to_thread(_retrieved, served, asking, body)
    passages = await served.llm.aread(
        found.documents,
        max_new_tokens=asking.longest,
        question_reserve=len(served.llm.prompts.question(body.question)),
    )
    other = await _asked(served, passages, body.question, asking.longest, evidence=False)
    whole = _side(reading, answer, 0.0)
    whole["evidence"] = evidence_of(answer.evidence, asking.documents)
    retrieved = _side(passages, other, found.seconds)
    retrieved["passages"] = found.passages
    return JSONResponse({"whole": whole, "retrieved": retrieved, "retriever": "bm25"})


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
    served: Served, reading: Reading, question: str, longest: int, *, evidence: bool
) -> Answer:
    """Return an answer, which ends early where the task is cancelled."""
    stream = await in_thread(
        lambda: reading.stream(question, max_new_tokens=longest, evidence=evidence)
    )
    async with stream:
        answer = await stream.aanswer()
    served.metrics.count(answer.usage)
    return answer


def _side(reading: Reading, answer: Answer, searched: float) -> JsonObject:
    used = answer.usage
    return {
        "text": answer.text,
        "seconds": searched + reading.seconds + used.prefill_seconds + used.decode_seconds,
        "tokens_read": used.prompt_tokens,
    }
