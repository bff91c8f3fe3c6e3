"""The readings that the server keeps: listed, opened again, deleted."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from fastapi import APIRouter
from starlette.responses import JSONResponse

from selfextend_rag.documents import Document
from selfextend_rag.llm.folder import DocumentName, KeptReading, names_of
from selfextend_rag.serve.api.requests import JsonObject
from selfextend_rag.serve.errors import ApiError
from selfextend_rag.serve.files import StoredFile
from selfextend_rag.serve.state import Served


def router(served: Served) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    kept = served.readings

    @routes.get("/readings")
    async def listed() -> JSONResponse:
        found = await asyncio.to_thread(kept.all)
        files = {_name_of(file): file.id for file in served.files.all()}
        return JSONResponse({"readings": [_described(each, files) for each in found]})

    @routes.post("/readings/{reading_id}/open")
    async def opened(reading_id: str) -> JSONResponse:
        documents = await asyncio.to_thread(kept.documents, reading_id)
        if documents is None:
            _missing(reading_id)
        files = [_kept_file(served, document) for document in documents]
        return JSONResponse({"files": [file.to_dict() for file in files]})

    @routes.delete("/readings/{reading_id}")
    async def deleted(reading_id: str) -> JSONResponse:
        if not await asyncio.to_thread(kept.remove, reading_id):
            _missing(reading_id)
        return JSONResponse({"deleted": True})

    return routes


def _described(reading: KeptReading, files: dict[DocumentName, str]) -> JsonObject:
    where = {"memory": reading.in_memory, "disk": reading.on_disk}
    return {
        "id": reading.id,
        "titles": [name.title or name.source or "" for name in reading.names],
        "files": [files.get(name) for name in reading.names],
        "tokens": reading.tokens,
        "nbytes": reading.nbytes,
        "created": reading.created,
        "where": [name for name, is_there in where.items() if is_there],
    }


def _kept_file(served: Served, document: Document) -> StoredFile:
    """Return the file of a document, now kept again if it was not; its text is all there is of it.

    Raises:
        ApiError: there is no space for it.
    """
    (wanted,) = names_of([document])
    for file in served.files.all():
        if _name_of(file) == wanted:
            return file
    name = document.source or document.title or document.id
    return served.files.keep(document, name, len(document.text.encode()))


def _name_of(file: StoredFile) -> DocumentName:
    return names_of([file.document])[0]


def _missing(reading_id: str) -> NoReturn:
    raise ApiError(
        404,
        f"there is no reading {reading_id!r}; it was deleted, or left out for those used later",
        code="reading_not_found",
    )
