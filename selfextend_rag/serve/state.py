"""What all routes of a server share."""

from __future__ import annotations

from typing import Any

from selfextend_rag.llm import KeptReadings, LongContextLLM
from selfextend_rag.serve.admission import Admission
from selfextend_rag.serve.bodies import Bodies
from selfextend_rag.serve.errors import ApiError
from selfextend_rag.serve.files import FileStore
from selfextend_rag.serve.metrics import Metrics
from selfextend_rag.serve.settings import ServerSettings


class Served:
    """A model with its queue, files and readings.

    Args:
        llm: the model.
        settings: what the server allows and keeps.
    """

    def __init__(self, llm: LongContextLLM, settings: ServerSettings) -> None:
        self.llm = llm
        self.settings = settings
        self.model_name = settings.model_name or llm.name
        self.admission = Admission(settings.max_waiting)
        self.bodies = Bodies(settings.max_body_bytes, settings.max_bodies_bytes)
        self.files = FileStore(
            settings.max_files, settings.max_files_bytes, "auto" if llm.reads_pictures else "text"
        )
        self.readings = KeptReadings(
            llm,
            max_bytes=settings.readings_bytes,
            folder=settings.readings_dir,
            folder_bytes=settings.readings_dir_bytes,
        )
        self.metrics = Metrics(self.admission, self.bodies, self.files, self.readings)

    def check_model(self, name: str) -> None:
        """Refuse another model than the one that is here.

        Raises:
            ApiError: it is another.
        """
        if name != self.model_name:
            raise ApiError(
                404,
                f"there is no model {name!r} here, but {self.model_name!r}",
                code="model_not_found",
                param="model",
            )

    def with_defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of an answer, with the server's where a request says nothing."""
        longest = self.settings.max_new_tokens
        return options if longest is None else {"max_new_tokens": longest, **options}
