"""What reads documents whole and answers, wherever the model runs: here, or on a server."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, Unpack

from selfextend_rag.documents import Document
from selfextend_rag.engine import Cancelled, Progress, in_thread
from selfextend_rag.llm.answers.answer import Answer, AnswerOptions
from selfextend_rag.llm.answers.stream import TextStream
from selfextend_rag.llm.budget import (
    DocumentGroups,
    Documents,
    ReadingBudget,
    Space,
    as_documents,
)
from selfextend_rag.llm.ledger import with_garbage_collected
from selfextend_rag.output.tools import ToolChoice, Tools, tool_request
from selfextend_rag.planning import ContextBudgetPlanner, ContextPlan
from selfextend_rag.text.messages import Message
from selfextend_rag.text.prompts import PromptBuilder

History = Sequence[tuple[str, str]]
"""Earlier questions, each with its answer, the oldest first."""

BatchQuestion = str | Mapping[str, object]
"""A question, or the arguments that ``ask`` would take for it, the question among them."""

_OF_THE_BATCH = frozenset(
    ("evidence", "progress", "cancelled")
)  # arguments of ``ask`` that it has once


class PromptOptions(AnswerOptions, total=False):
    """What ``generate`` takes besides the prompt."""

    tools: Tools | None
    tool_choice: ToolChoice
    parallel_tool_calls: bool


class QuestionOptions(AnswerOptions, total=False):
    """What ``ask`` takes besides the question."""

    history: History
    evidence: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """What a user gave for a model: its name, None if it was loaded, and options.

    Args:
        name: hub id, folder or ``"bundled"``; or the address of a server.
        loading: options that decide about the weights, or about the connection.
        context: options of `LongContextLLM`, or of `RemoteLLM`.
    """

    name: str | None
    loading: Mapping[str, Any]
    context: Mapping[str, Any]


class OneInProcess:
    """What holds a model's weights or keys: a copy of it, deep or not, is itself."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


class BaseReading(OneInProcess, ABC):
    """Documents that questions are asked about; made by ``read``.

    Attributes:
        documents: what was read.
        plan: the settings it was read under, and the space left for questions.
        seconds: how long the reading took.
        created: when it was done, in seconds since 1970.
    """

    documents: Sequence[Document]
    plan: ContextPlan
    seconds: float
    created: float

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Return the bytes that it takes in this process."""

    @abstractmethod
    def check_current(self) -> None:
        """Refuse to continue from what a model or tokenizer read that has been changed since."""

    @abstractmethod
    def stream(self, question: str, **options: Unpack[QuestionOptions]) -> TextStream:
        """Return the answer as text that comes as it is generated; see ``ask``."""

    @abstractmethod
    def ask_batch(
        self,
        questions: Sequence[BatchQuestion],
        *,
        at_once: int = 16,
        **options: Unpack[QuestionOptions],
    ) -> list[Answer]:
        """Return the answers to several questions, in their order; each is that of ``ask``."""

    def ask(self, question: str, **options: Unpack[QuestionOptions]) -> Answer:
        """Return the answer to a question about the documents.

        Args:
            question: the question alone; the prompt around it is made here.
            options: fields of `GenerationSettings`. By default ``max_new_tokens`` are those of the
                plan, and in the plain form, of models without a chat template, ``stop`` is a line
                end; ``also_stop`` are texts that end the answer besides. And any of these:

                * ``history``: earlier questions, each with its answer, the oldest first.
                * ``json_schema``: the answer is JSON that is valid for this schema.
                * ``evidence``: False to not look for the passages that the answer rests on, see
                  `Evidence`, which takes a few hundredths of the answering time.
                * ``progress``: called after each chunk of the question, from the model's worker
                  thread, which can't be asked anything meanwhile.
                * ``cancelled``: ends the answer where it is, between two chunks or tokens.

        Raises:
            ContextBudgetExceeded: question and answer need more space than the plan left.
            MemoryBudgetExceeded: memory has no space for them; nothing has run.
            SchemaError: the schema holds what can't be enforced; the model has not run.
            ConstraintError: the answer could not be kept to its schema.
        """
        return self.stream(question, **options).finish()


class BaseLLM(OneInProcess, ABC):
    """A causal language model that reads whole documents; see `LongContextLLM` and `RemoteLLM`.

    Attributes:
        tokenizer: the model's.
        planner: what may be chosen for it.
        prompts: builds its prompts.
        budget: plans for documents and questions.
        origin: what a user gave for it, where it was opened by that.
        finds_evidence: whether answers come with the passages that they rest on.
    """

    tokenizer: Any
    planner: ContextBudgetPlanner
    prompts: PromptBuilder
    budget: ReadingBudget
    origin: Origin | None = None
    finds_evidence: ClassVar[bool]

    @property
    @abstractmethod
    def name(self) -> str:
        """Return what the model is called."""

    @abstractmethod
    def read(
        self,
        documents: Documents,
        *,
        question: str | Sequence[str] = (),
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **space: Unpack[Space],
    ) -> BaseReading:
        """Return documents to be asked as often as wanted, planned with the space that is named."""

    @abstractmethod
    def stream(
        self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]
    ) -> TextStream:
        """Return the answer as a stream of text, while it is generated; see ``generate``."""

    @abstractmethod
    def check_options(self, **options: Unpack[AnswerOptions]) -> None:
        """Refuse options that ``ask`` would refuse, before documents are read for it."""

    @property
    def reads_pictures(self) -> bool:
        """Return whether documents, and messages of a user, may have pictures."""
        return self.prompts.reads_pictures

    def plan(
        self, documents: Documents, *, question: str | Sequence[str] = (), **space: Unpack[Space]
    ) -> ContextPlan:
        """Return how documents would be read; the model does not run.

        Args:
            documents: one or several, each a `Document` or a text.
            question: the question to come, or several; by default space is kept for any.
            space: ``max_new_tokens`` to keep free for an answer, by default those that the model's
                generation configuration names, or an eighth of P and at most 256;
                ``question_reserve``, tokens for a question and its frame, by default those of the
                longest ``question``, or an eighth of P, from 16 to 512; ``turns``, how many
                questions and answers will follow one after another, as in a conversation.

        Raises:
            ContextBudgetExceeded: they do not fit.
            MemoryBudgetExceeded: they would, but memory does not hold them.
        """
        kept = as_documents(documents)
        return with_garbage_collected(lambda: self.budget.planned(kept, question, space)[1])

    def plan_groups(
        self, documents: Documents, *, question: str | Sequence[str] = (), **space: Unpack[Space]
    ) -> DocumentGroups:
        """Return documents in as few groups as can each be read whole; arguments as for ``plan``.

        Each group has its ``documents``, in the order they were given in, and the ``plan`` under
        which ``read`` would read them. The list has a ``lower_bound``, which no grouping is below,
        and says with ``optimal`` whether it is met.

        Raises:
            DocumentTooLarge: a document can't be read even by itself; it is named.
        """
        return self.budget.plan_groups(as_documents(documents), question, space)

    def count_tokens(self, prompt: str | Sequence[Message], *, tools: Tools | None = None) -> int:
        """Return the tokens of a text alone, or of the prompt that messages, and tools, make.

        Messages that make none, such as a conversation whose last word is the model's, are counted
        one by one; what a prompt of several would take is no more.
        """
        if isinstance(prompt, str):
            return len(self.prompts.codec.text(prompt))
        request = tool_request(tools) if tools else None
        return self.prompts.count(prompt, () if request is None else request.tools)

    def generate(self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]) -> Answer:
        """Return the answer to a text or a conversation.

        Args:
            prompt: a text, or messages with ``role`` and ``content``, an assistant's ``tool_calls``
                and messages of role ``tool`` among them, in OpenAI's form. A user's content may be
                a list of parts, pictures among them, for a vision model; see docs/vision.md.
            options: fields of `GenerationSettings`. In the plain form, of models without a chat
                template, a conversation's ``stop`` is a line end by default; ``also_stop`` are
                texts that end the answer besides. And any of these:

                * ``tools`` that the model may call, in OpenAI's form; see ``answer.tool_calls``.
                * ``tool_choice``: ``"auto"``, ``"none"``, ``"required"`` or a tool's name.
                * ``parallel_tool_calls``: False for one call at most.
                * ``json_schema``: the answer is JSON that is valid for this schema; with tools, it
                  is that or calls.
                * ``progress``: called after each chunk of the prompt, from another thread.
                * ``cancelled``: ends the answer where it is.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit; the model has not run.
            SchemaError: a schema holds what can't be enforced; the model has not run.
            ToolError: tools, choice or messages about tools can't be used as they are.
            ConstraintError: the answer could not be constrained to its grammar.
        """
        return self.stream(prompt, **options).finish()

    async def aread(self, documents: Documents, **options: Any) -> BaseReading:
        """Do as ``read`` with the event loop free; ``cancelled`` may be given as an event alone.

        A task that is cancelled while it waits ends the reading between two chunks.
        """
        cancelled = options.pop("cancelled", None) or threading.Event()
        return await in_thread(
            lambda: self.read(documents, cancelled=cancelled, **options), cancelled
        )

    async def astream(
        self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]
    ) -> TextStream:
        """Do as ``stream``; tokenizing a long prompt takes a moment, so that is awaited too."""
        return await in_thread(lambda: self.stream(prompt, **options))

    async def agenerate(
        self, prompt: str | Sequence[Message], **options: Unpack[PromptOptions]
    ) -> Answer:
        """Do as ``generate`` with the event loop free; a cancelled task ends the answer."""
        async with await self.astream(prompt, **options) as stream:
            return await stream.aanswer()


def questions_of(
    questions: Sequence[BatchQuestion],
) -> list[tuple[str, dict[str, object]]]:
    """Return each question of a batch with the arguments that it has of its own.

    Raises:
        TypeError: ``questions`` are one text, or one of them is neither a text nor arguments.
    """
    if isinstance(questions, str | Mapping):
        raise TypeError(
            f"questions must be a list of questions, got one {type(questions).__name__}; "
            "use ask for a single question"
        )
    found = []
    for number, each in enumerate(questions, 1):
        own = {"question": each} if isinstance(each, str) else each
        question = own.get("question") if isinstance(own, Mapping) else None
        if not isinstance(question, str):
            raise TypeError(
                f"question {number} must be a text, or a dict with the text under 'question', got "
                f"{each!r}"
            )
        for name in own.keys() & _OF_THE_BATCH:
            raise TypeError(
                f"question {number} has {name!r} of its own; pass it once, to the whole batch"
            )
        found.append((question, {name: own[name] for name in own if name != "question"}))
    return found
