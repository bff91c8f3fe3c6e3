"""The bodies of requests: their bytes are bounded, one by one and together; JSON is read strictly.

JSON is parsed on the event loop: its parser holds the interpreter's lock, so that a thread would
free nothing. What takes long there is not many bytes but many values, so the bytes besides the data
of files are bounded by themselves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.types import Message, Receive

from selfextend_rag.serve.errors import ApiError

SECONDS_TO_SEND = 60.0  # for a client that sends nothing more of its body
_SECONDS_UNTIL_NEXT_TRY = 2
_FILE_DATA = re.compile(rb'"file_data"\s*:\s*"')

_Body = TypeVar("_Body", bound=BaseModel)


class Bodies:
    """Counts the bytes of bodies, from when they come until their requests have ended.

    Args:
        most: bytes of one.
        most_together: bytes of all that are here at a time.

    Attributes:
        held: bytes that are here now.
    """

    def __init__(self, most: int, most_together: int) -> None:
        self.most = most
        self.most_together = most_together
        self.held = 0

    def check(self, nbytes: int) -> None:
        """Refuse a body that declares more bytes than are taken, or than there is space for.

        Raises:
            ApiError: 413 for one alone, 429 for all together.
        """
        self._check(nbytes, self.held + nbytes)

    @contextmanager
    def counted(self, receive: Receive) -> Iterator[Receive]:
        """Return what receives a body in these bounds, whatever its header declared.

        It raises `ApiError` as `check` does, and 408 where nothing comes for a minute.
        """
        taken, is_whole = 0, False

        async def bounded() -> Message:
            nonlocal taken, is_whole
            message = await (receive() if is_whole else _soon(receive))
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                came = len(message.get("body", b""))
                taken += came
                self.held += came
                self._check(taken, self.held)
            return message

        try:
            yield bounded
        finally:
            self.held -= taken

    def _check(self, one: int, together: int) -> None:
        if one > self.most:
            raise ApiError(
                413,
                f"a request may have {self.most} bytes; send fewer or smaller files",
                code="too_large",
            )
        if together > self.most_together:
            raise ApiError(
                429,
                f"requests of {self.most_together} bytes together are taken at a time; ask again "
                f"in {_SECONDS_UNTIL_NEXT_TRY} s",
                kind="rate_limit_error",
                code="too_much_at_once",
                headers={"Retry-After": str(_SECONDS_UNTIL_NEXT_TRY)},
            )


async def _soon(receive: Receive) -> Message:
    """Return the next message of a body.

    Raises:
        ApiError: the client sends none.
    """
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            return await receive()
    except TimeoutError:
        raise ApiError(
            408, f"nothing more of the request came for {SECONDS_TO_SEND:g} s", code="body_timeout"
        ) from None


async def received(request: Request, form: type[_Body], most_text: int) -> _Body:
    """Return the body of a request, checked.

    Args:
        request: its body has not been received.
        form: of the body.
        most_text: bytes besides the data of files.

    Raises:
        ApiError: it is not sent as JSON, or too large.
        ClientDisconnect: the client left.
        RequestValidationError: it is no JSON, or not of this form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # pages of other origins may send any other without asking
        raise ApiError(
            415, f"send JSON, with the header Content-Type: application/json, got {kind or 'none'}"
        )
    data = b"".join([part async for part in request.stream()])  # request.body() would keep it
    if len(data) > most_text and (text := len(data) - _bytes_of_files(data)) > most_text:
        raise ApiError(
            413,
            f"a request may have {most_text} bytes besides the data of files, got {text}; attach "
            "long texts as files",
            code="too_large",
        )
    try:
        return form.model_validate_json(data)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _bytes_of_files(data: bytes) -> int:
    """Return the bytes of the strings that are called ``file_data``."""
    found, at = 0, 0
    while begun := _FILE_DATA.search(data, at):
        end = data.find(b'"', begun.end())
        at = len(data) if end == -1 else end
        found += at - begun.end()
    return found
