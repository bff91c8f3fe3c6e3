"""Who may use the server: hosts, web pages of other origins, the API key; and sizes of bodies."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfextend_rag.serve.bodies import Bodies
from selfextend_rag.serve.errors import ApiError
from selfextend_rag.serve.settings import ServerSettings

_OPEN = ("/health", "/", "/app", "/app/", "/app/static")  # the page, which asks for the key itself
_HEADERS = {  # of all answers
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """Lets through what the settings allow; the outermost layer of the server.

    Args:
        app: what answers.
        settings: names, hosts, origins and the key.
        bodies: counts the bodies of requests.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, bodies: Bodies) -> None:
        self.app = app
        self.settings = settings
        self.bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, send = Headers(scope=scope), _with_headers(send)
        try:
            self._check(scope, headers)
        except ApiError as error:
            await self._refuse(error, headers.get("origin"))(scope, receive, send)
            return
        with self.bodies.counted(receive) as bounded:
            await self.app(scope, bounded, send)

    def _refuse(self, error: ApiError, origin: str | None) -> Response:
        """Return the answer to what is not let in; pages of allowed origins may read it too."""
        response = error.response()
        if origin in self.settings.allowed_origins:
            response.headers["access-control-allow-origin"] = str(origin)
            response.headers["vary"] = "Origin"
        return response

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_allowed_host(_name_of(host)):
            raise ApiError(
                421,
                f"this server does not answer under the name {_name_of(host)!r}; allow it with "
                "--allowed-host",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed_origin(origin, host, scope):
            raise ApiError(
                403,
                f"pages of {origin} may not use this server; allow them with --allowed-origin",
                code="origin_not_allowed",
            )
        self._check_key(scope, headers)
        declared = headers.get("content-length", "")
        if declared.isdecimal():
            self.bodies.check(int(declared))

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        wanted, path = self.settings.api_key, scope["path"]
        if wanted is None or scope["method"] == "OPTIONS" or _is_open(path):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), wanted.encode())
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                401,
                "this server wants its API key, as the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_allowed_host(self, name: str) -> bool:
        return "*" in self.settings.allowed_hosts or name in self.settings.allowed_hosts

    def _is_allowed_origin(self, origin: str, host: str, scope: Scope) -> bool:
        if origin in self.settings.allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # no address, such as http://[
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _is_open(path: str) -> bool:
    """Return whether a path needs no key: what restarts a server asks it, or it is the page."""
    return path in _OPEN or path.startswith("/app/static/")


def is_loopback(host: str) -> bool:
    """Return whether a host to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """Return a ``Host`` header without its port, and without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(name, value) for name, value in _HEADERS.items() if name not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
