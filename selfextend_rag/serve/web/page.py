"""The page itself: files that are sent as they are, and may ask no other host for anything."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"

_HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "font-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "cache-control": "no-cache",  # kept by browsers, and asked for again whether it has changed
}


class _Files(StaticFiles):
    """The files of a folder, with the headers of the page."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the response for a file, or that it has not changed."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/app/``, and what it loads below ``/app/static/``."""
    app.mount("/app/static", _Files(directory=FOLDER))

    @app.get("/app/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=_HEADERS)

    @app.get("/app", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def to_page() -> RedirectResponse:
        return RedirectResponse("/app/")
