"""What the page sends: bodies of its requests, read strictly."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from selfextend_rag.serve.api.requests import Texts


class OfFiles(BaseModel):
    """What concerns files, in the order in which the model reads them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    files: Texts = Field(min_length=1)
    max_new_tokens: int | None = Field(default=None, ge=1)


class PlanRequest(OfFiles):
    """The body of ``plan``."""

    question: str = ""


Exchange = Annotated[list[str], Field(min_length=2, max_length=2)]
"""A question and its answer."""


class AskRequest(OfFiles):
    """The body of ``ask``; numbers are checked by the model's own settings."""

    question: str
    history: Annotated[list[Exchange], Field(fail_fast=True)] = Field(default_factory=list)
    temperature: float | None = None
    seed: int | None = None
    json_schema: dict[str, Any] | None = None


class CompareRequest(OfFiles):
    """The body of ``compare``, with the most passages to read."""

    question: str
    pieces: int = Field(default=3, ge=1, le=100)
