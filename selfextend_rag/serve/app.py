"""The server as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from selfextend_rag.errors import SelfExtendError
from selfextend_rag.llm import LongContextLLM
from selfextend_rag.serve.api import chat
from selfextend_rag.serve.errors import ApiError, api_error, log_fault
from selfextend_rag.serve.guard import Guard
from selfextend_rag.serve.settings import ServerSettings
from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web import add_web

_log = logging.getLogger(__name__)


def create_app(
    llm: LongContextLLM, settings: ServerSettings | None = None, *, web: bool = False
) -> FastAPI:
    """Return a server of OpenAI's API for a model.

    Its routes are ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``, ``/v1/files``,
    ``/health`` and ``/metrics``; docs/server.md says where they differ from OpenAI's. The state
    that they share is ``app.state.served``.

    Args:
        llm: the model; the requests wait for one another.
        settings: what the server allows and keeps.
        web: serve the web app too, at ``/app/``.
    """
    served = Served(llm, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await served.admission.close(0)

    app = FastAPI(
        title="selfextend-rag",
        version=metadata.version("selfextend-rag"),
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from another host
        redoc_url=None,
        openapi_url=None,  # it would not say what of OpenAI's API is there, as docs/server.md does
    )
    app.state.served = served
    app.add_exception_handler(ApiError, _said)
    app.add_exception_handler(SelfExtendError, _said)
    app.add_exception_handler(RequestValidationError, _said)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _said)
    app.include_router(chat.router(served))
    _add_models(app, served)
    _add_files(app, served)
    _add_signs(app, served)
    if web:
        add_web(app, served)
    if served.settings.allowed_origins:
        origins = list(served.settings.allowed_origins)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(Guard, settings=served.settings, bodies=served.bodies)
    return app


async def _said(_: Request, error: Exception) -> Response:
    known = api_error(error)
    if isinstance(error, SelfExtendError):  # others are logged by uvicorn
        log_fault(_log, known, error)
    return known.response()


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ApiError):  # raised while the body was received
        return error.__cause__.response()
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response()


def _add_models(app: FastAPI, served: Served) -> None:
    llm = served.llm

    def described() -> dict[str, object]:
        longest = llm.planner.plan(llm.planner.extended_window - 1, 1)
        return {
            "id": served.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "selfextend-rag",
            "max_model_len": llm.planner.extended_window,
            "pretraining_window": llm.planner.pretraining_window,
            "group_size": longest.group_size,
            "neighbor_window": longest.neighbor_window,
        }

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [described()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        served.check_model(name)
        return JSONResponse(described())


def _add_files(app: FastAPI, served: Served) -> None:
    files = served.files

    @app.post("/v1/files")
    async def add(
        file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()] = "user_data"
    ) -> JSONResponse:
        del purpose  # all files are read the same way
        stored = await files.add(await file.read(), file.filename or "file")
        return JSONResponse(stored.to_dict())

    @app.get("/v1/files")
    async def listed() -> JSONResponse:
        data = [file.to_dict() for file in files.all()]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    @app.get("/v1/files/{file_id}")
    async def one(file_id: str) -> JSONResponse:
        return JSONResponse(files.get(file_id).to_dict())

    @app.get("/v1/files/{file_id}/content")
    async def content(file_id: str) -> PlainTextResponse:
        return PlainTextResponse(files.get(file_id).document.text)

    @app.delete("/v1/files/{file_id}")
    async def remove(file_id: str) -> JSONResponse:
        files.remove(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})


def _add_signs(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        stops = served.admission.closing.is_set()
        return JSONResponse({"status": "stopping" if stops else "ok"}, 503 if stops else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(served.metrics.text(), media_type="text/plain; version=0.0.4")
