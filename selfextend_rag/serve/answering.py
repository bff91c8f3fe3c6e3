"""From a request to the answer to come: a conversation, or questions about attached files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from selfextend_rag.documents import Document
from selfextend_rag.engine import in_thread
from selfextend_rag.llm import Answer, Reading, TextStream, frameworks, question_and_history
from selfextend_rag.serve.errors import ApiError, api_error, bad_request
from selfextend_rag.serve.files import data_of_url
from selfextend_rag.serve.requests import ChatRequest, CompletionRequest, JsonObject
from selfextend_rag.serve.state import Served

_SHORT = 1000  # characters of a question that is tokenized sooner than a thread begins


class Answering:
    """An answer to come.

    Args:
        begin: starts it, and is awaited first.

    Attributes:
        answer: the whole answer, once all parts were taken.
        reading: tokens of the documents that were read, and all of them, while they are.
    """

    def __init__(self, begin: Callable[[Answering], Awaitable[TextStream]]) -> None:
        self._begin = begin
        self.answer: Answer | None = None
        self.reading: tuple[int, int] = (0, 0)

    async def parts(self) -> AsyncGenerator[str, None]:
        """Yield the text as it comes; closed before its end, the model stops."""
        stream = await self._begin(self)
        async with stream:
            async for part in stream:
                yield part
            self.answer = await stream.aanswer()

    def note_reading(self, done: int, total: int) -> None:
        """Take the progress of a reading."""
        self.reading = (done, total)


async def begin_chat(served: Served, request: ChatRequest) -> Answering:
    """Return the answer to a conversation, checked and planned: what can't be answered is refused.

    Raises:
        ApiError: as `errors.api_error` makes it.
    """
    options = served.with_defaults(request.options())
    documents, messages = await _attached(served, request.messages)
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
        if not question.strip():
            bad_request("the last message asks nothing about the attached files", "messages")

        async def ask(reading: Reading) -> TextStream:
            if len(question) < _SHORT and not history and "json_schema" not in options:
                return reading.stream(question, **options)
            return await in_thread(lambda: reading.stream(question, history=history, **options))

        if (kept := served.readings.find(documents, question, **asked)) is not None:
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
    the question.
    """
    done: list[JsonObject] = []
    said: list[str] = []
    for message in messages:
        if message.get("role") in ("system", "developer"):
            said.append(str(message["content"]))
            continue
        if said and message.get("role") == "user":
            message = {**message, "content": "\n\n".join([*said, str(message["content"])])}
            said = []
        done.append(message)
    return done


async def _attached(
    served: Served, messages: Sequence[JsonObject]
) -> tuple[list[Document], list[JsonObject]]:
    """Return the files that messages bring, each once, and the messages with text alone."""
    documents: dict[str, Document] = {}
    texts: list[JsonObject] = []
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            texts.append(message)
            continue
        parts: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                parts.append(part["text"])
            elif kind == "file":
                document = await _file(served, part.get("file"))
                documents.setdefault(document.id, document)
            else:
                bad_request(
                    f'a message may hold parts of type "text" and "file", got {kind!r}',
                    "messages",
                    "unsupported_content",
                )
        texts.append({**message, "content": "\n\n".join(parts)})
    return list(documents.values()), texts


async def _file(served: Served, given: object) -> Document:
    """Return the document of a file part, which names a kept file or brings its own."""
    file = given if isinstance(given, dict) else {}
    file_id, data = file.get("file_id"), file.get("file_data")
    if isinstance(file_id, str) and data is None:
        return served.files.get(file_id).document
    if isinstance(data, str) and file_id is None:
        name = file.get("filename")
        name = name if isinstance(name, str) else "file"
        return (await served.files.add(data_of_url(data), name)).document
    bad_request(
        'a file is {"file_id": ...} of one that was uploaded, or {"filename": ..., "file_data": '
        "...} with its bytes in base64",
        "messages",
    )


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
