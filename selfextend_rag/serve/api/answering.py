"""From a request to the answer to come: a conversation, or questions about attached files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.llm import Answer, BaseReading, TextStream, frameworks, question_and_history
from selfextend_rag.llm.base import History
from selfextend_rag.serve.api.reply import having_read
from selfextend_rag.serve.api.requests import ChatRequest, CompletionRequest, JsonObject
from selfextend_rag.serve.errors import ApiError, api_error, bad_request
from selfextend_rag.serve.files import data_of_url
from selfextend_rag.serve.state import Served

_T = TypeVar("_T")
_SHORT = 1000  # characters


class Answering:
    """An answer to come.

    Args:
        begin: starts it, and is awaited first; it may note how far documents are read for it.
    """

    def __init__(self, begin: Callable[[Answering], Awaitable[TextStream]]) -> None:
        self._begin = begin
        self._answer: Answer | None = None
        self._read = self._to_read = 0  # tokens of documents

    @property
    def answer(self) -> Answer:
        """Return the whole answer, once all parts were taken."""
        assert self._answer is not None
        return self._answer

    async def parts(self) -> AsyncGenerator[str, None]:
        """Yield the text as it comes; closed before its end, the model stops."""
        stream = await self._begin(self)
        async with stream:
            async for part in stream:
                yield part
            self._answer = having_read(await stream.aanswer(), self._to_read)

    def note_reading(self, done: int, total: int) -> None:
        """Take the progress of a reading."""
        self._read, self._to_read = done, total

    def state(self) -> str:
        """Return what the answer waits for."""
        return f"read {self._read} of {self._to_read} tokens" if self._to_read else "waiting"


async def begin_chat(served: Served, request: ChatRequest) -> Answering:
    """Return the answer to a conversation, checked and planned: what can't be answered is refused.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    options = served.with_defaults(request.options())
    documents, messages = await _attached(served, request.messages)
    if documents and any(isinstance(message.get("content"), list) for message in messages):
        bad_request(
            "pictures in messages can't go with attached files; attach each picture as a file",
            "messages",
            "unsupported_content",
        )
    if documents:
        return await _about_documents(served, documents, messages, options)
    merged = frameworks.merged_messages(messages)
    with refusing("messages"):
        stream = await served.llm.astream(merged, **options)
    return _begun(stream)


async def begin_text(served: Served, request: CompletionRequest) -> Answering:
    """Return what continues a text, planned.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    with refusing("prompt"):
        stream = await served.llm.astream(request.text(), **served.with_defaults(request.options()))
    return _begun(stream)


def _begun(stream: TextStream) -> Answering:
    async def begin(_: Answering) -> TextStream:
        return stream

    return Answering(begin)


async def _about_documents(
    served: Served, documents: list[Document], messages: list[JsonObject], options: JsonObject
) -> Answering:
    for name in ("tools", "tool_choice"):
        if options.get(name) not in (None, "none"):
            bad_request(f"{name} can't be used with attached files; leave one out", name)
        options.pop(name, None)
    options.pop("parallel_tool_calls", None)
    with refusing("messages"):
        question, history = question_and_history(_without_system(messages))
        asked: JsonObject = {"history": history, "max_new_tokens": options.get("max_new_tokens")}
        is_short = is_short_question(question, history)
        if not question.strip():
            bad_request("the last message asks nothing about the attached files", "messages")

        async def ask(reading: BaseReading) -> TextStream:
            def begun() -> TextStream:
                return reading.stream(question, history=history, **options)

            return await soon(begun, here=is_short and "json_schema" not in options)

        kept = await soon(lambda: served.readings.find(documents, question, **asked), here=is_short)
        if kept is not None:
            return _begun(await ask(kept))
        await asyncio.to_thread(served.llm.check_options, **options)
        await asyncio.to_thread(served.readings.plan, documents, question, **asked)

    async def begin(answering: Answering) -> TextStream:
        reading = await served.readings.aget(
            documents, question, progress=answering.note_reading, **asked
        )
        return await ask(reading)

    return Answering(begin)


def _without_system(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """Return messages with what system messages say before the user's next text.

    Documents are read under an instruction of their own, so what else is to be minded is part of
    the question. What is said behind the last question follows it.
    """
    done: list[JsonObject] = []
    said: list[str] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") in ("system", "developer"):
            if not isinstance(content, str):
                bad_request(f"message {number} of role {message['role']!r} has no text", "messages")
            said.append(content)
        elif said and message.get("role") == "user" and isinstance(content, str):
            done.append({**message, "content": "\n\n".join([*said, content])})
            said = []
        else:
            done.append(message)
    if said and done and isinstance(asked := done[-1].get("content"), str):
        done[-1] = {**done[-1], "content": "\n\n".join([asked, *said])}
    return done


async def _attached(
    served: Served, messages: Sequence[JsonObject]
) -> tuple[list[Document], list[JsonObject]]:
    """Return the files that messages bring, each once, and the messages without them.

    Their parts of text are one text, unless there are pictures among them.
    """
    documents: dict[str, Document] = {}
    texts: list[JsonObject] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            texts.append(message)
            continue
        parts: list[JsonObject] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            said = kind == "text" and isinstance(part.get("text"), str)
            if said or kind == "image_url":
                parts.append(part)
            elif kind == "file":
                document = await _file(served, part.get("file"))
                documents.setdefault(document.id, document)
            else:
                bad_request(
                    f'parts of a message are of type "text", "image_url" and "file", got {kind!r}',
                    "messages",
                    "unsupported_content",
                )
        texts.append({**message, "content": _content(parts)})
    return list(documents.values()), texts


def _content(parts: Sequence[JsonObject]) -> str | list[JsonObject]:
    """Return what parts of a message say, as a text where that is all."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return list(parts)


async def _file(served: Served, given: object) -> Document:
    """Return the document of a file part, which names a kept file or brings its own."""
    file = given if isinstance(given, dict) else {}
    file_id, data = file.get("file_id"), file.get("file_data")
    if isinstance(file_id, str) and data is None:
        return served.files.get(file_id).document
    if isinstance(data, str) and file_id is None:
        name = file.get("filename")
        name = name if isinstance(name, str) else "file"
        return await served.files.document_of(data_of_url(data), name)
    bad_request(
        'a file is {"file_id": ...} of one that was uploaded, or {"filename": ..., "file_data": '
        "...} with its bytes in base64",
        "messages",
    )


def is_short_question(question: str, history: History) -> bool:
    """Return whether a question is tokenized sooner than a thread begins."""
    return len(question) + sum(len(asked) + len(said) for asked, said in history) < _SHORT


async def soon(work: Callable[[], _T], *, here: bool) -> _T:
    """Return what work returns, run here, or else in a thread with the event loop free."""
    return work() if here else await in_thread(work)


@contextmanager
def refusing(param: str) -> Iterator[None]:
    """Make what is refused of a request, before the model runs, an error of the request."""
    try:
        yield
    except ApiError:
        raise
    except Exception as error:  # raised again, in the API's form
        known = api_error(error, param)
        if known.status >= 500 and isinstance(error, ValueError | TypeError):
            known = ApiError(400, str(error), param=param)
        raise known from error
