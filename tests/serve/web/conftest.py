"""A server with the web app on the bundled model, and a client within the same process."""

from __future__ import annotations

import httpx
import pytest

from selfextend_rag.serve import ServerSettings, create_app
from selfextend_rag.serve.web import page


@pytest.fixture
def static(tmp_path, monkeypatch):
    """A page to serve, whatever the real one is."""
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>the page</title>")
    (folder / "app.js").write_text("export {}")
    monkeypatch.setattr(page, "FOLDER", folder)
    return folder


@pytest.fixture
def make_client(llm, static):
    """Return a function that returns a client of a new server."""

    def made(settings=None, **headers):
        app = create_app(llm, settings or ServerSettings(), web=True)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        )
        client.app = app
        return client

    return made


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def upload():
    """Return a function that has a text kept as a file and returns the file's id."""

    async def uploaded(client, text, name="notes.txt"):
        response = await client.post("/v1/files", files={"file": (name, text.encode())})
        assert response.status_code == 200, response.text
        return response.json()["id"]

    return uploaded
