"""What the page knows before the model runs: samples, texts, tokens, plans, positions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from selfextend_rag.documents import Document, word_relevance
from selfextend_rag.errors import ContextBudgetExceeded, MemoryBudgetExceeded
from selfextend_rag.llm.frameworks import fit_or_rank
from selfextend_rag.planning import ContextPlan
from selfextend_rag.positions import SelfExtend
from selfextend_rag.serve.bodies import received
from selfextend_rag.serve.errors import ApiError
from selfextend_rag.serve.files import StoredFile
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web import samples
from selfextend_rag.serve.web.bodies import PlanRequest

JsonObject = dict[str, object]

_POINTS = 400  # of a curve
_LONGEST = 1 << 30  # tokens that a curve is drawn for


def router(served: Served) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    tokens = FileTokens(served)

    @routes.get("/info")
    async def info() -> JSONResponse:
        found = [asdict(sample) for sample in samples.SAMPLES]
        return JSONResponse({**_of_server(served), "samples": found})

    @routes.post("/samples/{name}")
    async def sample(name: str) -> JSONResponse:
        try:
            data = samples.data_of(name)
        except KeyError:
            known = ", ".join(samples.NAMES)
            raise ApiError(404, f"there is no sample {name!r}; there are {known}") from None
        return JSONResponse((await served.files.add(data, name)).to_dict())

    @routes.get("/files/{file_id}")
    async def file(file_id: str) -> JSONResponse:
        stored = served.files.get(file_id)
        text, places = stored.document.text, stored.document.locations
        count = await asyncio.to_thread(tokens.of, stored)
        about: JsonObject = {"text": text, "tokens": count, "locations": list(map(asdict, places))}
        return JSONResponse(stored.to_dict() | about)

    @routes.post("/plan")
    async def plan(request: Request) -> JSONResponse:
        body = await received(request, PlanRequest, served.settings.max_text_bytes)
        files = [served.files.get(file_id) for file_id in body.files]
        return JSONResponse(await asyncio.to_thread(_planned, served, tokens, files, body))

    @routes.get("/positions")
    async def positions(
        group_size: Annotated[int, Query(ge=1)],
        neighbor_window: Annotated[int, Query(ge=1)],
        length: Annotated[int, Query(ge=1, le=_LONGEST)],
    ) -> JSONResponse:
        settings, query = SelfExtend(group_size, neighbor_window), length - 1
        distances = _points(length, neighbor_window)
        found = [settings.relative_position(query, query - distance) for distance in distances]
        return JSONResponse({"distances": distances, "positions": found})

    return routes


def documents_of(files: Sequence[StoredFile]) -> dict[str, Document]:
    """Return the documents of files by the files' ids; of those with one text, the first."""
    found: dict[str, tuple[str, Document]] = {}
    for file in files:
        found.setdefault(file.document.id, (file.id, file.document))
    return dict(found.values())


class FileTokens:
    """The tokens of files, each counted once.

    Args:
        served: their server.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, file: StoredFile) -> int:
        """Return the tokens of a file's text; a prompt has a heading and a border besides."""
        with self._lock:
            if file.id in self._known:
                return self._known[file.id]
        counted = self._served.llm.count_tokens(file.document.text.strip())
        with self._lock:
            if len(self._known) > 2 * self._served.settings.max_files:
                self._known.clear()  # most are of files that were removed
            self._known[file.id] = counted
        return counted


def _of_server(served: Served) -> JsonObject:
    llm, settings = served.llm, served.settings
    return {
        "model": served.model_name,
        "pretraining_window": llm.planner.pretraining_window,
        "extended_window": llm.planner.extended_window,
        "max_new_tokens": settings.max_new_tokens or llm.budget.max_new_tokens,
        "question_reserve": llm.budget.question_reserve,
        "max_body_bytes": settings.max_body_bytes,
        "max_files": settings.max_files,
        "saves": settings.readings_dir is not None,
    }


def _planned(
    served: Served, tokens: FileTokens, files: Sequence[StoredFile], body: PlanRequest
) -> JsonObject:
    """Return how files would be read, or what is in the way and which of them would do."""
    documents = documents_of(files)
    longest = body.max_new_tokens or served.settings.max_new_tokens
    answer: JsonObject = {
        "fits": True,
        "plan": None,
        "explanation": "",
        "tokens": {file.id: tokens.of(file) for file in files},
        "problem": None,
        "fitting": None,
        "memory": None,
    }

    def plan(names: Sequence[str]) -> ContextPlan:
        chosen = [documents[name] for name in documents if name in names]
        return served.readings.plan(chosen, body.question, max_new_tokens=longest)

    try:
        found = plan(list(documents))
    except ContextBudgetExceeded as error:
        figures = ("needed", "available", "excess", "remedies")
        problem = {"message": str(error)} | {name: getattr(error, name) for name in figures}
        answer |= {"fits": False, "problem": problem, "memory": _memory_of_refusal(error)}
    else:
        plans = {"plan": found.to_dict(), "explanation": found.explain()}
        return answer | plans | {"memory": _memory_of_plan(found)}

    def ranked(names: Sequence[str]) -> list[str]:
        scores = word_relevance(body.question, [documents[name].text for name in names])
        return [names[i] for i in sorted(range(len(names)), key=lambda i: -scores[i])]

    if body.question.strip():
        sizes = {file.id: tokens.of(file) for file in files}
        try:
            kept, _ = fit_or_rank(list(documents), check=plan, size=sizes.__getitem__, rank=ranked)
        except ContextBudgetExceeded:
            return answer  # not one fits
        answer["fitting"] = [name for name in documents if name in kept]
    return answer


def _memory_of_plan(plan: ContextPlan) -> JsonObject | None:
    """Return what the device that has least to spare needs and has; None if it is not known."""
    devices = plan.memory.devices if plan.memory is not None else ()
    known = [(x.needed_bytes, x.available_bytes) for x in devices if x.available_bytes is not None]
    if not known:
        return None
    needed, available = max(known, key=lambda pair: pair[0] - pair[1])
    return {"needed_bytes": needed, "available_bytes": available}


def _memory_of_refusal(error: ContextBudgetExceeded) -> JsonObject | None:
    if not isinstance(error, MemoryBudgetExceeded):
        return None
    return {"needed_bytes": error.needed_bytes, "available_bytes": error.available_bytes}


def _points(length: int, neighbor_window: int) -> list[int]:
    """Return about 400 distances from 0 to the farthest, both ends of the window among them."""
    last = length - 1
    even = {round(last * i / (_POINTS - 1)) for i in range(_POINTS)}
    border = {x for x in (neighbor_window - 1, neighbor_window) if x <= last}
    return sorted(even | border)
