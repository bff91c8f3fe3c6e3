"""Streams of events, and a client that can leave them: httpx has responses once they are over."""

from __future__ import annotations

import asyncio
import json


def events_of(text):
    """The events of a stream as pairs of name and data, comments left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if line[:1] not in (":", "")
        )
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


class Connection:
    """A POST request whose response is received as it comes; leaving the block closes it."""

    def __init__(self, app, path, body):
        self._app = app
        self._body = json.dumps(body).encode()
        self._left = asyncio.Event()
        self._sent = asyncio.Queue()
        self._waiting = []
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
        }

    async def __aenter__(self):
        self.start()
        assert (await self._sent.get())["status"] == 200
        return self

    async def __aexit__(self, *_):
        self.leave()

    def start(self):
        """Send the request."""
        self._task = asyncio.ensure_future(self._app(self._scope, self._receive, self._sent.put))

    def leave(self):
        """Close the connection."""
        self._left.set()

    async def event(self):
        """The next event."""
        while not self._waiting:
            self._waiting = events_of((await self._sent.get())["body"].decode())
        return self._waiting.pop(0)

    async def ended(self):
        """Wait for the end of the request on the server."""
        await self._task

    async def _receive(self):
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
