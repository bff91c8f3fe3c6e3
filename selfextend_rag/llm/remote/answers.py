"""From a prompt to an answer by a server: sent, received as it comes, and checked."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from selfextend_rag.engine import GenerationSettings, Job, Progress, Usage
from selfextend_rag.errors import ConstraintError, PromptMismatch, ServerError
from selfextend_rag.llm.answers.answer import Answer, AnswerReason
from selfextend_rag.llm.remote.forms import Sender, SentPrompt
from selfextend_rag.llm.remote.http import JsonObject
from selfextend_rag.output.reader import StopTexts
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.messages import ToolCall

_SECONDS_BETWEEN_LOOKS = 0.05
_SLACK = 2  # tokens a message, which vocabularies may join across its borders
_REASONS: dict[str, AnswerReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "cancelled": "cancelled",
}


class RequestWorker:
    """Sends requests, so many at once, in threads that end when there are none."""

    def __init__(self, at_once: int) -> None:
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        self.at_once = at_once
        self._guard = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._threads: set[threading.Thread] = set()

    def submit(self, job: Job[Any]) -> None:
        """Put a job at the end of the queue."""
        with self._guard:
            self._jobs.append(job)
            if len(self._threads) < self.at_once:
                thread = threading.Thread(None, self._run, "selfextend-rag-request", daemon=True)
                self._threads.add(thread)
                thread.start()

    def is_current(self) -> bool:
        """Return whether this is one of its threads."""
        return threading.current_thread() in self._threads

    def refuse_wait(self) -> None:
        """Refuse to wait in a callback, which might keep the request from being sent.

        Raises:
            RuntimeError: this thread sends a request.
        """
        if self.is_current():
            raise RuntimeError(
                "a callback of a request can't wait for another one; start it once this one ended"
            )

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._jobs:
                    self._threads.discard(threading.current_thread())
                    return
                job = self._jobs.popleft()
            job.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePrompt:
    """A prompt with all that is needed to have it answered, checked.

    Args:
        make: writes it when it is sent, so that one that waits takes no memory.
        settings: of the answer.
        plan: what was planned for it.
        follows_colon: it ends in a colon, as in the plain form: white space first is no answer.
        schema: what the answer is constrained by.
        progress: called once the server has read it.
    """

    make: Callable[[], SentPrompt]
    settings: GenerationSettings
    plan: ContextPlan
    follows_colon: bool = False
    schema: Mapping[str, object] | None = None
    progress: Progress | None = None

    def body(self, *, stops: bool = True) -> JsonObject:
        """Return the fields of a request besides the prompt; those at their default are left out.

        ``temperature`` is always there, because the defaults of servers differ from ours.
        """
        usual, own = GenerationSettings(), self.settings
        names = ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop_token_ids")
        body: JsonObject = {"max_tokens": own.max_new_tokens, "temperature": own.temperature}
        body |= {x: getattr(own, x) for x in names if getattr(own, x) != getattr(usual, x)}
        if self.schema is not None:
            described = {"name": "answer", "schema": dict(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        elif own.stop and stops:
            body["stop"] = list(own.stop)
        return body


@dataclass(slots=True)
class _Received:
    """What has come of an answer."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    reason: str | None = None
    usage: JsonObject | None = None
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None  # when its first part came
    last: float | None = None


class RemoteRunner:
    """Has prompts answered by one server."""

    def __init__(self, sender: Sender, at_once: int) -> None:
        self.sender = sender
        self.worker = RequestWorker(at_once)
        self._framing: dict[str, int] = {}  # by path, tokens that the server writes more than we

    def answer(
        self,
        prompt: RemotePrompt,
        put: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> Answer:
        """Return an answer, its text passed on as it comes; in a thread of the worker.

        Raises:
            ServerError: the server could not answer; its kinds say more.
            PromptMismatch: it has read something else than was sent.
            ConstraintError: the answer is not of the form that was asked for.
        """
        sent, received = prompt.make(), _Received()
        say = _without_leading_space(put) if prompt.follows_colon else put
        self._receive(prompt, sent, received, say, is_cancelled)
        self._check(sent, received)
        blank = not received.text.strip() and received.reason == "stop"
        if blank and prompt.follows_colon and prompt.settings.stop:
            usage, received = received.usage, _Received(started=received.started)
            self._receive(prompt, sent, received, say, is_cancelled, own_stops=True)
            received.usage = self._counted(usage or {}, received)
        return self._answer(prompt, sent, received)

    def _receive(
        self,
        prompt: RemotePrompt,
        sent: SentPrompt,
        received: _Received,
        put: Callable[[str], None],
        is_cancelled: Callable[[], bool],
        *,
        own_stops: bool = False,
    ) -> None:
        """Send a prompt and receive its answer, until the server or the caller ends it.

        With ``own_stops`` the texts that end it are looked for here, and white space before it
        counts for nothing; the server does not say then how many tokens there were.
        """
        stops = StopTexts(prompt.settings.stop) if own_stops else None
        body = {
            "model": self.sender.served.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **prompt.body(stops=stops is None),
            **sent.body,
        }
        url = f"{self.sender.served.client.connection.url}{sent.path}"
        running = self.sender.served.client.start(self._events(url, body, received, put, stops))
        told = prompt.progress is None
        try:
            while wait([running], _SECONDS_BETWEEN_LOOKS).not_done:
                if not told and received.first is not None and prompt.progress is not None:
                    prompt.progress(sent.tokens, sent.tokens)
                    told = True
                if is_cancelled():
                    received.reason = "cancelled"
                    return
            running.result()
        finally:
            running.cancel()  # closes the connection; of no effect once it has ended

    async def _events(
        self,
        url: str,
        body: JsonObject,
        received: _Received,
        put: Callable[[str], None],
        stops: StopTexts | None,
    ) -> None:
        async with aclosing(self.sender.served.client.events(url, body)) as events:
            async for event in events:
                if received.reason == "cancelled":
                    return
                received.usage = event.get("usage") or received.usage
                for choice in event.get("choices") or ():
                    part = _take(received, choice)
                    if stops is not None:
                        part = stops.push(part if received.text else part.lstrip())
                    if part:
                        received.text += part
                        put(part)
                if stops is not None and stops.found:
                    received.reason = "stop"
                    return
        if stops is not None and (rest := stops.rest()):
            received.text += rest
            put(rest)
        if received.reason is None:
            raise ServerError(f"{url} ended an answer without saying why")

    def _check(self, sent: SentPrompt, received: _Received) -> None:
        """Refuse an answer to something else than was sent, by the server's own count.

        What the server's template writes around messages is measured where counts differ.

        Raises:
            PromptMismatch: the counts differ by more.
            ServerError: the server does not say how many tokens it has read.
        """
        if received.reason == "cancelled":
            return
        read = (received.usage or {}).get("prompt_tokens")
        if not isinstance(read, int):
            raise ServerError(
                "the server does not say how many tokens it has read (usage.prompt_tokens), so "
                "nobody knows whether it has read the whole prompt"
            )
        if read == sent.tokens:
            return
        if not sent.exact:
            allowed = (abs(self._frame(sent.path)) + _SLACK) * max(1, sent.messages)
            most = sent.tokens + allowed if not sent.described else read
            if sent.tokens - sent.described - allowed <= read <= most:
                return
        raise PromptMismatch(
            f"the server has read {read} tokens of a prompt of {sent.tokens}: it cut text off, or "
            "reads it with another tokenizer or chat template than this side counts with; give "
            "tokenizer= its own, and window= what it really takes",
            sent=sent.tokens,
            read=read,
        )

    def _frame(self, path: str) -> int:
        """Return how many tokens more than our count a prompt of one character is."""
        if path not in self._framing:
            sent, served = self.sender.smallest(path), self.sender.served
            body = {"model": served.model, "max_tokens": 1, **sent.body}
            answer = served.client.json("POST", f"{served.client.connection.url}{path}", body)
            self._framing[path] = int(answer["usage"]["prompt_tokens"]) - sent.tokens
        return self._framing[path]

    def _counted(self, usage: JsonObject, received: _Received) -> JsonObject:
        tokens = len(self.sender.prompts.codec.text(received.text))
        return {**usage, "completion_tokens": tokens}

    def _answer(self, prompt: RemotePrompt, sent: SentPrompt, received: _Received) -> Answer:
        if received.reason == "cancelled" and received.usage is None:
            received.usage = self._counted({"prompt_tokens": sent.tokens}, received)
        text = received.text.lstrip() if prompt.follows_colon else received.text
        calls, unfinished = _calls(received)
        reason = _REASONS.get(received.reason or "")
        if reason is None:
            raise ServerError(f"the server ended the answer for another reason: {received.reason}")
        if calls and reason == "stop":
            reason = "tool_calls"
        if prompt.schema is not None and reason == "stop" and not _is_json(text):
            raise ConstraintError(
                f"the server did not keep the answer to the schema: it is no JSON: {text[:80]!r}"
            )
        return Answer(text, reason, _usage(received), prompt.plan, calls, unfinished)


def _take(received: _Received, choice: JsonObject) -> str:
    """Take what a choice of an event adds, and return its text."""
    delta = choice.get("delta") or {}
    part = choice.get("text") or delta.get("content") or ""
    added = delta.get("tool_calls") or ()
    if part or added:
        received.last = time.perf_counter()
        received.first = received.first or received.last
    for call in added:
        own = received.calls.setdefault(call.get("index") or 0, {"id": "", "name": "", "text": ""})
        function = call.get("function") or {}
        own["id"] = call.get("id") or own["id"]
        own["name"] += function.get("name") or ""
        own["text"] += function.get("arguments") or ""
    received.reason = choice.get("finish_reason") or received.reason
    return str(part)


def _calls(received: _Received) -> tuple[tuple[ToolCall, ...], str]:
    """Return the calls of an answer, and the text of one that was cut off.

    Raises:
        ConstraintError: a call that is whole is none.
    """
    calls: list[ToolCall] = []
    for call in (received.calls[index] for index in sorted(received.calls)):
        try:
            arguments = json.loads(call["text"] or "{}")
        except ValueError as error:
            if received.reason in ("length", "cancelled"):
                return tuple(calls), call["text"]
            raise ConstraintError(
                f"the server called {call['name']!r} with what is no JSON: {call['text'][:80]!r}"
            ) from error
        if not isinstance(arguments, dict):
            raise ConstraintError(f"the server called {call['name']!r} with {arguments!r}")
        calls.append(ToolCall(call["id"], call["name"], arguments))
    return tuple(calls), ""


def _usage(received: _Received) -> Usage:
    usage = received.usage or {}
    details = usage.get("prompt_tokens_details") or {}
    first = received.first or time.perf_counter()
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        prefill_seconds=first - received.started,
        decode_seconds=(received.last or first) - first,
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _without_leading_space(put: Callable[[str], None]) -> Callable[[str], None]:
    """Return what passes text on from its first character that is no white space."""
    begun = False

    def say(part: str) -> None:
        nonlocal begun
        if shown := part if begun else part.lstrip():
            begun = True
            put(shown)

    return say
