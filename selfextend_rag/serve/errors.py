"""What goes wrong with a request, in the form of OpenAI's API."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from reprlib import Repr
from typing import NoReturn

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from selfextend_rag.errors import (
    ConstraintError,
    ContextBudgetExceeded,
    DocumentError,
    GenerationCancelled,
    MemoryBudgetExceeded,
    SchemaError,
    SelfExtendError,
    ToolError,
)

_short = Repr()  # of what a request holds, however long that is
_short.maxstring = _short.maxother = _short.maxlong = 100


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: a sentence for people.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``; None for none.
        param: the field of the request that it is about.
        headers: of the answer.
        more: further fields, which only this server has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, object] = {
            "message": message,
            "type": kind,
            "param": param,
            "code": code,
            **(more or {}),
        }

    def response(self) -> JSONResponse:
        """Return the answer to send."""
        return JSONResponse({"error": self.body}, self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> NoReturn:
    """Refuse a request for what it asks.

    Raises:
        ApiError: always.
    """
    raise ApiError(400, message, param=param, code=code)


def api_error(error: BaseException, param: str | None = None) -> ApiError:
    """Return an error of this package, or of a request's form, in OpenAI's form.

    What is none of these is a fault of the server, and nothing of it is said.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextBudgetExceeded):
        return ApiError(
            400, str(error), code="context_length_exceeded", param=param, more=_figures(error)
        )
    if isinstance(error, SchemaError):
        return ApiError(400, str(error), param="response_format", code="invalid_schema")
    if isinstance(error, ToolError):
        return ApiError(400, str(error), param="tools", code="invalid_tools")
    if isinstance(error, DocumentError):
        return ApiError(400, str(error), param="file", code="unreadable_file")
    if isinstance(error, GenerationCancelled):
        return shutting_down()
    if isinstance(error, ConstraintError):
        return ApiError(500, str(error), kind="server_error", code="constraint_failed")
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, SelfExtendError):
        return ApiError(500, str(error), kind="server_error")
    return ApiError(500, "the server failed; its log says why", kind="server_error")


def shutting_down() -> ApiError:
    """Return the error of a request that comes, or is cut off, while the server stops."""
    return ApiError(
        503,
        "the server is shutting down; ask again when it is back",
        kind="server_error",
        code="shutting_down",
    )


def loading() -> ApiError:
    """Return the error of a request that comes before the model is loaded."""
    return ApiError(
        503,
        "the model is being loaded; ask again in a while",
        kind="server_error",
        code="loading",
        headers={"Retry-After": "5"},
    )


def log_fault(log: logging.Logger, known: ApiError, error: Exception) -> None:
    """Log what is no fault of the client, with where it came from."""
    if known.status == 500:
        log.error("a request failed", exc_info=error)


def _figures(error: ContextBudgetExceeded) -> dict[str, object]:
    figures: dict[str, object] = {
        name: getattr(error, name)
        for name in ("needed", "available", "excess", "group_size", "neighbor_window")
    }
    figures["remedies"] = list(error.remedies)
    if isinstance(error, MemoryBudgetExceeded):
        figures["limited_by"] = "memory"
        figures |= {
            name: getattr(error, name) for name in ("device", "needed_bytes", "available_bytes")
        }
    return figures


def _invalid(error: RequestValidationError) -> ApiError:
    """Return what is wrong with the first wrong field, as a sentence."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the request is no JSON: {reason}", code="invalid_json")
    if first["type"] == "missing":
        return ApiError(400, f"{'.'.join(place)} is missing", param=".".join(place))
    what = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    said = f"{'.'.join(place) or 'the request'}: {what}, got {_short.repr(first.get('input'))}"
    return ApiError(400, said, param=".".join(place) or None)
