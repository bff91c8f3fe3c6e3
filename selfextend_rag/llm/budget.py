"""What fits: plans for documents, questions and answers, made by a tokenizer without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict

from selfextend_rag.documents import Document, Picture
from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.planning import (
    ContextBudgetPlanner,
    ContextPlan,
    MemoryBudget,
    PlanRemark,
)
from selfextend_rag.text.messages import BREAK
from selfextend_rag.text.prompts import Prompt, PromptBuilder, prompt_state

_STEP = 1.5

Documents = str | Document | Sequence[str | Document]


class Space(TypedDict, total=False):
    """What to keep free behind documents, in tokens; see ``LongContextLLM.plan``."""

    max_new_tokens: int | None
    question_reserve: int | None
    turns: int


@dataclass(frozen=True, slots=True)
class DocumentGroup:
    """Whole documents that fit one prompt, and how it is read."""

    documents: tuple[Document, ...]
    plan: ContextPlan


class DocumentGroups(list[DocumentGroup]):
    """Groups of whole documents; fewer than ``lower_bound`` are impossible."""

    def __init__(self, groups: Iterable[DocumentGroup], lower_bound: int) -> None:
        super().__init__(groups)
        self.lower_bound = lower_bound

    @property
    def optimal(self) -> bool:
        """Return whether fewer groups are known to be impossible."""
        return len(self) == self.lower_bound


class ReadingBudget:
    """Plans readings for one tokenizer and one pretraining window.

    Args:
        prompts: the model's prompts.
        planner: what may be chosen for the model.
        stated_max_new_tokens: the length of answers by the model's generation configuration.
        memory: says what memory there is for the model now; by default it is not looked at.
    """

    def __init__(
        self,
        prompts: PromptBuilder,
        planner: ContextBudgetPlanner,
        stated_max_new_tokens: int | None = None,
        memory: Callable[[], MemoryBudget | None] = lambda: None,
    ) -> None:
        self.prompts = prompts
        self.planner = planner
        self.memory = memory
        self._last: tuple[object, Prompt] | None = None
        window = planner.pretraining_window
        self.max_new_tokens = stated_max_new_tokens or max(1, min(256, window // 8))
        """The length of answers if none is asked for: as stated, or P / 8 and at most 256."""
        self.question_reserve = max(16, min(512, window // 8))
        """Tokens kept free for a question if it is not known: P / 8, from 16 to 512."""

    def planned(
        self, documents: Sequence[Document], question: str | Sequence[str], space: Space
    ) -> tuple[Prompt, ContextPlan]:
        """Return documents as tokens, and how they would be read; see ``LongContextLLM.plan``.

        Those that were last asked for are not tokenized again, until ``forget_tokens``.
        """
        key = tuple(documents), prompt_state(self.prompts)
        last = self._last  # another thread may replace it meanwhile
        if last is None or last[0] != key:
            last = self._last = key, self.prompts.documents(documents)
        answer, reserve, turns = self._space(question, space)
        memory = self.memory()
        plan = partial(
            self.planner.plan, len(last[1].tokens), answer,
            reserve_tokens=reserve, turns=turns, memory=memory,
            remarks=remarks_of(documents, self.prompts),
            picture_bytes=self._picture_bytes(memory, pictures_of(documents)),
        )  # fmt: skip
        try:
            return last[1], plan()
        except ContextBudgetExceeded:
            if len(documents) < 2:
                raise
        # raises again, and can now say which documents
        return last[1], plan(documents=[(name_of(d), self._tokens_of(d)) for d in documents])

    def forget_tokens(self) -> None:
        """Release the tokens of the documents that ``planned`` was last asked for."""
        self._last = None

    def plan_groups(
        self, documents: Sequence[Document], question: str | Sequence[str], space: Space
    ) -> DocumentGroups:
        """Return documents in as few prompts as hold them whole; see ``LongContextLLM``."""
        sizes = [self._tokens_of(document) for document in documents]
        answer, reserve, turns = self._space(question, space)
        budget, bound = self.memory(), None
        largest = self._picture_bytes(budget, pictures_of(documents))
        while True:
            found = self.planner.plan_groups(
                sizes, answer, reserve_tokens=reserve, frame_tokens=self._frame_tokens(documents),
                turns=turns, memory=budget, names=[name_of(document) for document in documents],
                picture_bytes=largest,
            )  # fmt: skip
            # later rounds count what joining adds, which is no reason why fewer are impossible
            bound = found.lower_bound if bound is None else bound
            groups = []
            for group, plan in zip(found.groups, found.plans, strict=True):
                members = tuple(documents[index] for index in group)
                read = len(self.prompts.documents(members, ranges=False))
                if read > plan.prompt_tokens:  # joined, they are more tokens than one by one
                    for index in group:
                        sizes[index] += read - plan.prompt_tokens
                    break
                exact = self.planner.plan(
                    read, answer, reserve_tokens=reserve, turns=turns, memory=budget,
                    remarks=remarks_of(members, self.prompts),
                    picture_bytes=self._picture_bytes(budget, pictures_of(members)),
                )  # fmt: skip
                groups.append(DocumentGroup(members, exact))
            else:
                return DocumentGroups(groups, bound)

    def _space(self, question: str | Sequence[str], space: Space) -> tuple[int, int, int]:
        """Return the tokens to keep free for an answer and for a question, and how often.

        Raises:
            TypeError: an option is none of `Space`.
        """
        if unknown := sorted(space.keys() - Space.__annotations__.keys()):
            known = ", ".join(Space.__annotations__)
            raise TypeError(f"unknown option {', '.join(unknown)}; space is kept by {known}")
        answer, reserve = space.get("max_new_tokens"), space.get("question_reserve")
        if reserve is None:
            questions = [question] if isinstance(question, str) else question
            lengths = [len(self.prompts.question(each)) for each in questions]
            reserve = max(lengths, default=self.question_reserve)
        return self.max_new_tokens if answer is None else answer, reserve, space.get("turns", 1)

    def _frame_tokens(self, documents: Sequence[Document]) -> int:
        """Return the tokens of a prompt besides its documents, and one more for their border."""
        if not documents:
            return 0
        shortest = min(documents, key=lambda document: len(document.text))
        alone = len(self.prompts.documents([shortest], ranges=False))
        own = len(self.prompts.codec.text(shortest.text.rstrip()))
        return max(0, alone - own - self.prompts.picture_tokens(shortest)) + 1

    def _tokens_of(self, document: Document) -> int:
        """Return the tokens of a document under its heading, with the breaks around it."""
        heading = " ".join(document.title.split()) or "Document 1000"
        pictures = self.prompts.picture_tokens(document)
        text = f"# {heading} (100){BREAK}{document.text}{BREAK}"
        return len(self.prompts.codec.text(text)) + pictures

    def _picture_bytes(self, memory: MemoryBudget | None, pictures: Sequence[Picture]) -> int:
        """Return what encoding the largest of some pictures takes; 0 where memory is not known."""
        if memory is None or not pictures:
            return 0
        return memory.model.picture_bytes(self.prompts.picture_works(pictures))

    def plan_prompt(
        self, prompt_tokens: int, max_new_tokens: int, pictures: Sequence[Picture] = ()
    ) -> ContextPlan:
        """Return how a prompt of ``generate`` and its answer are run.

        What must be extended gets settings for more tokens than it has: for the next of the lengths
        P * 1.5, P * 1.5 ** 2, ... So the turns of a conversation that grows mostly have the same
        settings, and each reuses the keys of those before. The length of prompt and answer alone
        decides, never what happens to be kept.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit.
        """
        plan = self.planner.plan(prompt_tokens, max_new_tokens)
        if plan.extended:
            planned = float(plan.pretraining_window)
            while planned < plan.total_tokens:
                planned *= _STEP
            farthest = max(plan.total_tokens, self.planner.extended_window)
            reserve = min(int(planned), farthest) - plan.total_tokens
            # where that does not fit, the prompt itself does, and that is what was asked
            with suppress(ContextBudgetExceeded):
                plan = self.planner.plan(prompt_tokens, max_new_tokens, reserve_tokens=reserve)
        budget = self.memory()
        if budget is None:
            return plan
        plan = replace(plan, picture_bytes=self._picture_bytes(budget, pictures))
        asked = self.planner.within_memory(replace(plan, reserve_tokens=0), budget)
        return replace(asked, reserve_tokens=plan.reserve_tokens)


def name_of(document: Document) -> str:
    """Return what to call a document in a message."""
    return document.title or document.source or document.id


def pictures_of(documents: Iterable[Document]) -> list[Picture]:
    """Return the pictures of documents."""
    return [picture for document in documents for picture in document.pictures]


def remarks_of(documents: Sequence[Document], prompts: PromptBuilder) -> list[PlanRemark]:
    """Return what a plan says of documents whose text lacks something, or whose pictures do."""
    found = []
    for document in documents:
        source = document.source or name_of(document)
        found += [PlanRemark(source, x.severity, x.message) for x in document.shortcomings]
        found += [PlanRemark(source, "warning", x) for x in prompts.shortcomings(document)]
    return found


def as_documents(documents: Documents) -> list[Document]:
    """Return one or several documents or texts as a list of documents."""
    if isinstance(documents, str | Document):
        documents = [documents]
    return [
        Document.from_text(document) if isinstance(document, str) else document
        for document in documents
    ]
