"""What a server allows and keeps."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\sA-Z@]+")  # as browsers write it


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Names, limits and places of a server; see docs/server.md.

    Args:
        model_name: what clients call the model; by default its own name.
        api_key: what clients have to send as a bearer token; None for none.
        allowed_hosts: names under which the server may be addressed, without port; a request for
            another one is refused, so that no web page reaches it by a name that it points here.
            ``"*"`` allows any.
        allowed_origins: web pages of other hosts that may use it, such as
            ``"https://intranet.example"``.
        max_new_tokens: tokens of an answer whose request names none; None for the model's own.
        max_waiting: requests that may wait for the model besides the one that it answers.
        max_body_bytes: bytes of a request, files in it included.
        max_bodies_bytes: bytes of all requests that are received, answered or wait at a time.
        max_text_bytes: bytes of a request's JSON besides the data of files in it.
        max_files: uploaded files to keep.
        max_files_bytes: what they may take together, as they were sent.
        readings_bytes: memory for the keys of documents that were read.
        readings_dir: a folder where they are kept as well; None for memory alone.
        readings_dir_bytes: what its files may take together.
        shutdown_seconds: how long running answers may go on after the server was asked to stop.

    Raises:
        ValueError: a number is out of range, the key is empty, or an origin is none.
    """

    model_name: str | None = None
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = LOOPBACK
    allowed_origins: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    max_waiting: int = 64
    max_body_bytes: int = 256 << 20
    max_bodies_bytes: int = 1 << 30
    max_text_bytes: int = 8 << 20
    max_files: int = 1000
    max_files_bytes: int = 1 << 30
    readings_bytes: int = 2 << 30
    readings_dir: str | os.PathLike[str] | None = None
    readings_dir_bytes: int = 16 << 30
    shutdown_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in (
            *("max_body_bytes", "max_text_bytes", "max_files", "max_files_bytes"),
            "readings_dir_bytes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("max_waiting", "readings_bytes", "shutdown_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or positive, got {getattr(self, name)}")
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes, {self.max_bodies_bytes}, is less than max_body_bytes of one "
                f"request, {self.max_body_bytes}"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be positive, got {self.max_new_tokens}")
        if self.api_key is not None:
            if not self.api_key.strip():
                raise ValueError("api_key is empty; give one, or None for a server without")
            object.__setattr__(self, "api_key", self.api_key.strip())  # a file's line end, perhaps
        hosts = tuple(host.lower() for host in self.allowed_hosts)
        object.__setattr__(self, "allowed_hosts", hosts)
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"allowed_origins are like https://a.example or http://a.example:8080, in "
                    f"small letters and without a path, got {origin!r}"
                )
