"""Requests to one server: sent again where it is busy, streams read event by event, typed errors.

All requests of a process run in one event loop, in a thread of its own, so that callers in threads
and in other loops can wait for them, and end them: a cancelled request closes its connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

from selfextend_rag.errors import (
    ContextBudgetExceeded,
    ModelNotServed,
    SchemaError,
    ServerAccessError,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    ToolError,
    in_short,
)

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
JsonObject = dict[str, Any]

_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0  # seconds that a busy server may ask for
_BUSY = frozenset((429, 503))
_END = "[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How a server is reached.

    Args:
        url: where its API begins, such as ``"http://127.0.0.1:8000/v1"``.
        api_key: sent as a bearer token; None for none.
        headers: more to send with each request.
        timeout: seconds without a word of the server, after which a request fails; None for any.
        max_retries: how often a request is sent again to a server that is busy.
        verify: False to trust any certificate, or the path of those to trust.

    Raises:
        ValueError: an address or a number is none.
    """

    url: str
    api_key: str | None = None
    headers: Mapping[str, str] | None = None
    timeout: float | None = 600.0
    max_retries: int = 4
    verify: bool | str = True

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f'the address of a server must begin with "http://" or "https://", got {self.url!r}'
            )
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout}")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be 0 or positive, got {self.max_retries}")
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def root(self) -> str:
        """Return the address without the version that OpenAI's API begins with."""
        return self.url.removesuffix("/v1")


class HttpClient:
    """Sends requests to one server."""

    def __init__(self, connection: Connection) -> None:
        httpx = _httpx()
        self.connection = connection
        headers = dict(connection.headers or {})
        if connection.api_key:
            headers["Authorization"] = f"Bearer {connection.api_key}"
        self._client: httpx2.AsyncClient = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(connection.timeout, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),  # how many at once is decided before
            verify=connection.verify,
        )

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine of this client in its loop; a cancelled future ends it."""
        return asyncio.run_coroutine_threadsafe(work, _running_loop())

    def json(self, method: str, url: str, body: object = None) -> JsonObject:
        """Return what a server answers, an object of JSON; waits for it.

        Raises:
            ServerError: it could not be reached, or answered with an error; its kinds say more.
        """
        return self.start(self._json(method, url, body)).result()

    async def _json(self, method: str, url: str, body: object) -> JsonObject:
        async with self._response(method, url, body) as response:
            text = await response.aread()
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ServerError(f"{url} answered with what is no JSON: {in_short(error)}") from error
        if not isinstance(found, dict):
            raise ServerError(f"{url} answered with no object of JSON")
        return found

    async def events(self, url: str, body: object) -> AsyncGenerator[JsonObject, None]:
        """Yield the events of a streamed answer, each an object of JSON.

        Raises:
            ServerError: as ``json``; also where the stream ends before its end was announced.
        """
        rest = b""
        async with self._response("POST", url, body) as response:
            # not by lines of text: JSON may hold what ends a line in Unicode and not here
            async for part in response.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    data = line.decode().strip()
                    if not data.startswith("data:"):
                        continue  # comments, which say that it is at work, and names of events
                    data = data.removeprefix("data:").strip()
                    if data == _END:
                        return
                    yield _event(data, url)
        raise ServerError(f"{url} broke off in the middle of an answer")

    @asynccontextmanager
    async def _response(
        self, method: str, url: str, body: object
    ) -> AsyncIterator[httpx2.Response]:
        """Open a request; where the server is busy, wait as it asks and send it again."""
        httpx = _httpx()
        response: httpx2.Response | None = None
        try:
            response = await self._sent(method, url, body)
            yield response
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"{url} has said nothing for {self._patience(error)} seconds; allow more by "
                "timeout, or ask less"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerUnreachable(
                f"can't reach {url}: {in_short(error)}; is the server running there?"
            ) from error
        finally:
            if response is not None:
                await response.aclose()

    async def _sent(self, method: str, url: str, body: object) -> httpx2.Response:
        """Return the answer to a request, its body not read; where the server is busy, wait."""
        httpx, tries, lost = _httpx(), 0, False
        while True:
            request = self._client.build_request(method, url, json=body)
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if lost:
                    raise
                lost = True  # the server had closed a connection that was kept for further requests
                continue
            if response.is_success:
                return response
            text = await response.aread()
            error = api_error(response.status_code, text, url)
            wait = _wait_seconds(response.headers.get("Retry-After"), tries)
            if isinstance(error, ServerBusy):
                error.retry_after = wait
            busy = response.status_code in _BUSY and wait <= _LONGEST_WAIT
            if not busy or tries == self.connection.max_retries:
                raise error
            tries += 1
            await asyncio.sleep(wait)

    def _patience(self, error: Exception) -> float | None:
        waited_to_connect = isinstance(error, _httpx().ConnectTimeout)
        return _CONNECT_SECONDS if waited_to_connect else self.connection.timeout


def _event(data: str, url: str) -> JsonObject:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ServerError(f"{url} sent an event that is no JSON: {in_short(error)}") from error
    if not isinstance(found, dict):
        raise ServerError(f"{url} sent an event that is no object of JSON")
    if found.get("error"):
        raise _error_of(found, None, url)
    return found


def api_error(status: int, body: bytes, url: str) -> Exception:
    """Return the error that an answer with this status and body is."""
    try:
        said = json.loads(body)
    except ValueError:
        said = {"error": {"message": " ".join(body.decode("utf-8", "replace").split())[:300]}}
    return _error_of(said if isinstance(said, dict) else {}, status, url)


def _error_of(said: JsonObject, status: int | None, url: str) -> Exception:
    inner = said.get("error", said)
    figures: JsonObject = inner if isinstance(inner, dict) else {"message": str(inner)}
    message = str(figures.get("message") or figures.get("detail") or "it does not say why")
    code = figures.get("code")
    named = code if isinstance(code, str) else None
    if status is None and isinstance(code, int):  # in a stream vLLM has the status there
        status = code
    if named == "context_length_exceeded" or "maximum context length" in message:
        return ContextBudgetExceeded(
            f"the server refuses the prompt: {message}",
            needed=_figure(figures, "needed"),
            available=_figure(figures, "available"),
            group_size=figures.get("group_size"),
            neighbor_window=figures.get("neighbor_window"),
        )
    if named == "invalid_schema":
        return SchemaError(message)
    if named == "invalid_tools":
        return ToolError(message)
    text = f"{url} answers with status {status}: {message}" if status else f"{url}: {message}"
    kinds: dict[int, type[ServerError]] = {
        401: ServerAccessError,
        403: ServerAccessError,
        429: ServerBusy,
        503: ServerBusy,
    }
    kind = kinds.get(status or 0, ServerError)
    if named == "model_not_found" or (status == 404 and "model" in message.lower()):
        kind = ModelNotServed
    return kind(text, status=status, code=named)


def _figure(figures: JsonObject, name: str) -> int:
    value = figures.get(name)
    return value if isinstance(value, int) else 0


def _wait_seconds(stated: str | None, tries: int) -> float:
    """Return how long to wait: as the server says, in seconds or by a date, or ever longer."""
    if stated is not None:
        try:
            return max(0.0, float(stated))
        except ValueError:
            pass
        try:
            return max(0.0, float(parsedate_to_datetime(stated).timestamp() - time()))
        except ValueError:
            pass
    return min(8.0, 0.5 * float(2**tries))


def _httpx() -> Any:
    """Return the HTTP library, imported when a server is first asked.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import httpx2
    except ImportError as error:
        raise ImportError(
            'asking a server needs httpx2; pip install "selfextend-rag[remote]"'
        ) from error
    return httpx2


_loop: tuple[int, asyncio.AbstractEventLoop] | None = None  # with the process that it runs in
_guard = threading.Lock()


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop of this process's requests, started when it is first needed."""
    global _loop
    with _guard:
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(
                target=loop.run_forever, name="selfextend-rag-http", daemon=True
            ).start()
            _loop = os.getpid(), loop
        return _loop[1]
