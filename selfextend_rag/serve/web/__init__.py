"""The web app: one page and the routes that only it needs, next to those of OpenAI's API.

The page keeps the order of its files, the conversation and the settings; files and readings are the
server's. All that comes from documents and models is sent as JSON, never as HTML.
"""

from __future__ import annotations

from fastapi import FastAPI

from selfextend_rag.serve.state import Served
from selfextend_rag.serve.web import asking, comparing, documents, page, readings

API = "/app/api"


def add_web(app: FastAPI, served: Served) -> None:
    """Add the page and its routes to a server."""
    for each in (documents, asking, comparing, readings):
        app.include_router(each.router(served), prefix=API)
    page.add_page(app)
