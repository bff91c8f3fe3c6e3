"""A model on a server, asked as one in this process is."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Unpack, cast

from transformers import PreTrainedTokenizerBase

from selfextend_rag.documents import Document
from selfextend_rag.engine import Cancelled, Progress
from selfextend_rag.errors import CacheMismatchError, NotOnServer, SelfExtendError
from selfextend_rag.llm.answers.answer import Answer, AnswerOptions
from selfextend_rag.llm.answers.runner import generation_settings
from selfextend_rag.llm.answers.stream import TextStream
from selfextend_rag.llm.base import (
    BaseLLM,
    BaseReading,
    BatchQuestion,
    PromptOptions,
    QuestionOptions,
    questions_of,
)
from selfextend_rag.llm.budget import Documents, ReadingBudget, Space, as_documents
from selfextend_rag.llm.remote.answers import RemotePrompt, RemoteRunner
from selfextend_rag.llm.remote.counting import ServedPrompts
from selfextend_rag.llm.remote.forms import Sender
from selfextend_rag.llm.remote.http import Connection, HttpClient
from selfextend_rag.llm.remote.server import look_up, tokenizer_of
from selfextend_rag.output.schema import schema_of
from selfextend_rag.output.tools import tool_request
from selfextend_rag.planning import ServedPlanner
from selfextend_rag.text.messages import Message
from selfextend_rag.text.prompts import INSTRUCTION, PromptBuilder, PromptForm, prompt_state

KEY_VARIABLE = "SELFEXTEND_RAG_API_KEY"

_NOT_THERE = (
    "{} can't be had of {}, which runs on a server; use a model in this process for it "
    "(LongContextLLM.from_pretrained)"
)


class RemoteLLM(BaseLLM):
    """A model on a server of OpenAI's API, with the interface of `LongContextLLM`.

    Documents are packed and planned here, by the server's window and the model's tokenizer, and
    what does not fit is refused before a request is sent. Nothing is cut: the server's own count of
    the tokens it has read is checked after each answer. Whether and how it extends the model is the
    server's business. Requests run at the same time, up to ``at_once``.

    Evidence, attention and saved readings are the business of a model in this process; asked for,
    they are a `NotOnServer`.

    Args:
        url: where the API begins, such as ``"http://127.0.0.1:8000/v1"``.
        model: its name on the server; by default the only one.
        api_key: sent as a bearer token; by default ``SELFEXTEND_RAG_API_KEY`` of the environment.
        tokenizer: the model's, or the hub id or folder that has it. By default it is looked for by
            the name of the model, and else the server counts, if it has an endpoint for that.
        window: tokens of prompt and answer that the server takes; by default as it states
            (``max_model_len`` of ``/models``).
        at_once: requests at the same time; further ones wait.
        timeout: seconds without a word of the server, the reading of a prompt included, after
            which a request fails; None for any.
        max_retries: how often a request is sent again to a server that is busy (status 429 or
            503), after the time that it asks for.
        headers: more to send with each request.
        verify: False to trust any certificate, or the path of those to trust.
        prompt_form, instruction, template_options: as for `LongContextLLM`.

    Raises:
        ImportError: the extra ``remote`` is not installed.
        ModelLoadError: the tokenizer can't be loaded.
        ModelNotServed: there is no such model, or several and none was named.
        PromptMismatch: the tokenizer is another than the server's.
        ServerAccessError: the server wants another key.
        ServerError: it answers with an error, or does not state its window.
        ServerUnreachable: there is no server.
        ValueError: an option is out of range.
    """

    finds_evidence = False

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
        window: int | None = None,
        at_once: int = 16,
        timeout: float | None = 600.0,
        max_retries: int = 4,
        headers: Mapping[str, str] | None = None,
        verify: bool | str = True,
        prompt_form: PromptForm = "auto",
        instruction: str = INSTRUCTION,
        template_options: Mapping[str, object] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "window": window,
            "at_once": at_once,
            "timeout": timeout,
            "max_retries": max_retries,
            "headers": headers,
            "verify": verify,
            "prompt_form": prompt_form,
            "instruction": instruction,
            "template_options": template_options,
        }
        key = api_key or os.environ.get(KEY_VARIABLE) or None
        connection = Connection(
            url=url,
            api_key=key,
            headers=headers,
            timeout=timeout,
            max_retries=max_retries,
            verify=verify,
        )
        self.served = served = look_up(HttpClient(connection), model, window)
        found = tokenizer_of(served, tokenizer)
        if found is None:
            self.prompts: PromptBuilder = ServedPrompts(
                served, form=prompt_form, instruction=instruction
            )
        else:
            self.prompts = PromptBuilder(
                found, form=prompt_form, instruction=instruction, template_options=template_options
            )
        self.tokenizer = self.prompts.codec.tokenizer
        window = served.pretraining_window or served.window
        self.planner = ServedPlanner(window, served_window=served.window)
        self.budget = ReadingBudget(self.prompts, self.planner)
        self.runner = RemoteRunner(Sender(served, self.prompts, template_options), at_once)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open it again, with the key of the environment there: keys do not travel."""
        return partial(RemoteLLM, **self._options), (self.url, self.name)

    @property
    def url(self) -> str:
        """Return where the server's API begins."""
        return self.served.client.connection.url

    @property
    def name(self) -> str:
        """Return the name of the model on the server."""
        return self.served.model

    def read(
        self,
        documents: Documents,
        *,
        question: str | Sequence[str] = (),
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **space: Unpack[Space],
    ) -> RemoteReading:
        """Return documents to be asked about, planned; the server reads them with a question.

        It reads them once where it keeps the keys of prompts that begin alike, and
        ``answer.usage.cached_tokens`` are those that it had kept.

        Args:
            documents: one or several, each a `Document` or a text.
            question: the question to come, or several; by default space is kept for any.
            progress: not called, because nothing is read yet.
            cancelled: without effect, for the same reason.
            space: ``max_new_tokens``, ``question_reserve`` and ``turns``, as for ``plan``.

        Raises:
            ContextBudgetExceeded: they do not fit; no request has been sent.
        """
        started = time.perf_counter()
        kept = as_documents(documents)
        packed, plan = self.budget.planned(kept, question, space)
        self.budget.forget_tokens()  # from here on, the reading has them
        reading = RemoteReading(self, kept, packed.tokens)
        reading.plan, reading.seconds = plan, time.perf_counter() - started
        return reading

    async def aread(self, documents: Documents, **options: Any) -> RemoteReading:
        """Do as ``read`` with the event loop free."""
        reading = await super().aread(documents, **options)
        assert isinstance(reading, RemoteReading)  # which read returns
        return reading

    def load(self, path: str | os.PathLike[str], **_: object) -> NoReturn:
        """Refuse: keys of readings are for a model in this process.

        Raises:
            NotOnServer: always.
        """
        raise NotOnServer(_NOT_THERE.format(f"a reading from a file ({path})", self.name))

    def check_options(self, **options: Unpack[AnswerOptions]) -> None:
        """Refuse options that ``ask`` would refuse, before documents are read for it.

        Raises:
            SchemaError: the schema says nothing of a value.
            TypeError: there is no such option.
            ValueError: an option is out of range.
        """
        self._prepared(dict(options), framed=True)

    def stream(
        self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]
    ) -> TextStream:
        """Return the answer as a stream of text, while it comes; see ``generate``."""
        given = dict(options)
        cancelled = cast(Cancelled, given.pop("cancelled", None))
        tools, choice = options.get("tools"), options.get("tool_choice", "auto")
        parallel, request = options.get("parallel_tool_calls", True), None
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            given.pop(name, None)
        if tools or choice != "auto":
            request = tool_request(tools, choice, parallel)
        framed = not isinstance(prompt, str) or request is not None
        make = partial(self.runner.sender.conversation, prompt, request)
        sent = make()
        planned = self._prepared(given, framed=framed)
        settings = planned["settings"]
        plan = self.budget.plan_prompt(sent.tokens, settings.max_new_tokens)
        return self.started(RemotePrompt(make=lambda: sent, plan=plan, **planned), cancelled)

    def started(self, prompt: RemotePrompt, cancelled: Cancelled = None) -> TextStream:
        """Return the answer to a prompt that was prepared, as it comes."""
        return TextStream(partial(self.runner.answer, prompt), self.runner.worker, cancelled)

    def _prepared(self, options: dict[str, Any], *, framed: bool) -> dict[str, Any]:
        """Return the arguments of a `RemotePrompt` that follow from options alone."""
        schema, progress = options.pop("json_schema", None), options.pop("progress", None)
        options.pop("cancelled", None)
        stop = self.prompts.answer_stops if framed else ()
        usual = {"max_new_tokens": self.budget.max_new_tokens, "stop": stop}
        return {
            "settings": generation_settings({**usual, **options}),
            "follows_colon": framed and self.prompts.skips_space,
            "schema": None if schema is None else schema_of(schema),
            "progress": progress,
        }


class RemoteReading(BaseReading):
    """Documents for a model on a server; made by ``RemoteLLM.read``.

    Each question is sent with the documents, which the server reads once if it keeps keys.
    """

    def __init__(
        self, llm: RemoteLLM, documents: Sequence[Document], tokens: tuple[int, ...]
    ) -> None:
        self.documents = tuple(documents)
        self.created = time.time()
        self._llm = llm
        self._tokens = tokens
        self._prompt_state = prompt_state(llm.prompts)

    @property
    def nbytes(self) -> int:
        """Return about what it takes in this process: texts and tokens; keys are the server's."""
        return sum(len(document.text) for document in self.documents) + 8 * len(self._tokens)

    def check_current(self) -> None:
        """Refuse tokens that another state of the tokenizer or its template made.

        Raises:
            CacheMismatchError: it has changed since.
        """
        if prompt_state(self._llm.prompts) != self._prompt_state:
            raise CacheMismatchError(
                "the tokenizer, its special tokens or its chat template have changed since these "
                "documents were planned; read them again, or put it back"
            )

    def stream(self, question: str, **options: Unpack[QuestionOptions]) -> TextStream:
        """Return the answer as text that comes as it is generated; see ``ask``.

        Raises:
            NotOnServer: evidence is asked for.
        """
        cancelled = options.get("cancelled")
        return self._llm.started(self._prepared(question, dict(options)), cancelled)

    def ask_batch(
        self,
        questions: Sequence[BatchQuestion],
        *,
        at_once: int = 16,
        **options: Unpack[QuestionOptions],
    ) -> list[Answer]:
        """Return the answers to several questions, in their order; each is that of ``ask``.

        Args:
            questions: texts; or, for what differs by question, dicts of the arguments of ``ask``.
            at_once: the most questions that are sent at a time, within the model's own ``at_once``.
            options: as for ``ask``. ``progress`` is given the questions answered, and how many
                there are.

        Raises:
            ContextBudgetExceeded: a question and its answer need more space than the plan left;
                nothing has been sent. Errors of one question say in a note which it is.
            TypeError: a question is none; nothing has been sent.
            ValueError: an option is out of range; nothing has been sent.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        progress, cancelled = options.pop("progress", None), options.pop("cancelled", None)
        prompts = []
        for number, (question, own) in enumerate(questions_of(questions), 1):
            try:
                prompts.append(self._prepared(question, {**options, **own}))
            except (SelfExtendError, TypeError, ValueError) as error:
                error.add_note(f"It was question {number} of the batch.")
                raise
        return self._answered(prompts, at_once, cancelled, progress)

    def _answered(
        self,
        prompts: Sequence[RemotePrompt],
        at_once: int,
        cancelled: Cancelled,
        progress: Progress | None,
    ) -> list[Answer]:
        running: deque[TextStream] = deque()
        answers: list[Answer] = []

        def finish() -> None:
            try:
                answers.append(running[0].answer)
            except (SelfExtendError, TypeError, ValueError) as error:
                error.add_note(f"It was question {len(answers) + 1} of the batch.")
                raise
            running.popleft()
            if progress is not None:
                progress(len(answers), len(prompts))

        try:
            for prompt in prompts:
                running.append(self._llm.started(prompt, cancelled))
                if len(running) == at_once:
                    finish()
            while running:
                finish()
        finally:
            for stream in running:
                stream.close()
        return answers

    def _prepared(self, question: str, options: dict[str, Any]) -> RemotePrompt:
        self.check_current()
        if options.pop("evidence", False):
            raise NotOnServer(_NOT_THERE.format("evidence", self._llm.name))
        history = options.pop("history", ())
        options.setdefault("max_new_tokens", self.plan.max_new_tokens)
        planned = self._llm._prepared(options, framed=True)
        make = partial(
            self._llm.runner.sender.about, self.documents, self._tokens, question, history
        )
        most = planned["settings"].max_new_tokens
        plan = self._llm.planner.plan_within(self.plan, make().tokens, most)
        return RemotePrompt(make=make, plan=plan, **planned)

    @property
    def saved_bytes(self) -> NoReturn:
        """Refuse: there are no keys here.

        Raises:
            NotOnServer: always.
        """
        raise NotOnServer(_NOT_THERE.format("the size of a saved reading", self._llm.name))

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Refuse: there are no keys here to save.

        Raises:
            NotOnServer: always.
        """
        raise NotOnServer(_NOT_THERE.format(f"a saved reading ({path})", self._llm.name))

    def answer_nll(self, question: str, answer: str) -> NoReturn:
        """Refuse: it takes the model's own numbers.

        Raises:
            NotOnServer: always.
        """
        raise NotOnServer(_NOT_THERE.format("the likelihood of an answer", self._llm.name))
