"""What fits: plans for documents, questions and answers, and the memory that their runs share.

A plan is made before its run begins, by a tokenizer without a model. Once the model is free and
before anything runs, the run reserves its memory: kept prompts are evicted for it, and if that is
not enough it is refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict
from weakref import WeakSet

from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.cache import bytes_by_device, layer_nbytes
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.documents import Document
from selfextend_rag.engine import Reserve
from selfextend_rag.errors import ContextBudgetExceeded, MemoryBudgetExceeded, UnknownMemoryError
from selfextend_rag.llm.memory import MemoryLimit, budget_of, memory_of_model
from selfextend_rag.planning import (
    ContextBudgetPlanner,
    ContextPlan,
    DeviceMemory,
    MemoryBudget,
    ModelMemory,
)
from selfextend_rag.planning.memory import DeviceEstimate, MemoryEstimate, format_bytes
from selfextend_rag.text.messages import BREAK
from selfextend_rag.text.prompts import Prompt, PromptBuilder, prompt_state

_STEP = 1.5

Documents = str | Document | Sequence[str | Document]

Bytes = Mapping[str, int]
"""Bytes by device."""


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
        plan = partial(
            self.planner.plan, len(last[1].tokens), answer,
            reserve_tokens=reserve, turns=turns, memory=self.memory(),
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
        while True:
            found = self.planner.plan_groups(
                sizes, answer, reserve_tokens=reserve, frame_tokens=self._frame_tokens(documents),
                turns=turns, memory=budget, names=[name_of(document) for document in documents],
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
                    read, answer, reserve_tokens=reserve, turns=turns, memory=budget
                )
                groups.append(DocumentGroup(members, exact))
            else:
                return DocumentGroups(groups, bound)

    def _space(self, question: str | Sequence[str], space: Space) -> tuple[int, int, int]:
        """Return the tokens to keep free for an answer and for a question, and how often."""
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
        return max(0, alone - len(self.prompts.codec.text(shortest.text.rstrip()))) + 1

    def _tokens_of(self, document: Document) -> int:
        """Return the tokens of a document under its heading, with the breaks around it."""
        heading = " ".join(document.title.split()) or "Document 1000"
        return len(self.prompts.codec.text(f"# {heading} (100){BREAK}{document.text}{BREAK}"))

    def plan_prompt(self, prompt_tokens: int, max_new_tokens: int) -> ContextPlan:
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
        asked = self.planner.within_memory(replace(plan, reserve_tokens=0), budget)
        return replace(asked, reserve_tokens=plan.reserve_tokens)


def name_of(document: Document) -> str:
    """Return what to call a document in a message."""
    return document.title or document.source or document.id


def as_documents(documents: Documents) -> list[Document]:
    """Return one or several documents or texts as a list of documents."""
    if isinstance(documents, str | Document):
        documents = [documents]
    return [
        Document.from_text(document) if isinstance(document, str) else document
        for document in documents
    ]


_LOCK = threading.RLock()
_LEDGERS: WeakSet[Ledger] = WeakSet()  # of this process; what one reserves, the others see


class Ledger:
    """What memory there is for one `LongContextLLM`, besides what this process holds.

    Without a limit, what is free on a device is shared with all models there: what their runs have
    reserved is not free, and any prompt that is kept there may be evicted. A limit is the model's:
    all that is held for it counts, by whichever `LongContextLLM`, and nothing of other models.

    Args:
        model: the model, which runs one thing at a time.
        kept: the store of kept prompts, if there is one; they can be evicted.
        limit, chunk_size, kv_bits: as of `LongContextLLM`, and so are the errors.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kept: PrefixStore | None = None,
        *,
        limit: MemoryLimit | None = None,
        chunk_size: int | None = None,
        kv_bits: int | None = None,
    ) -> None:
        self._model = model
        self._kept = kept
        self._limit = limit
        self._chunk_size = chunk_size
        self._readings: WeakSet[SelfExtendCache] = WeakSet()
        # the cache of each block's run, and what it needs until it ends, the cache included
        self._reserved: dict[object, tuple[SelfExtendCache, Bytes]] = {}
        self._memory: ModelMemory | None = None
        try:
            self._memory = memory_of_model(model, kv_bits)
        except UnknownMemoryError:
            if limit is not None:
                raise
        self.budget()  # refuses a limit that is out of range
        with _LOCK:
            _LEDGERS.add(self)

    def hold(self, cache: SelfExtendCache) -> None:
        """Count a reading's cache as held, as long as it lives."""
        with _LOCK:
            self._readings.add(cache)

    def budget(self) -> MemoryBudget | None:
        """Return what there is for a plan, kept prompts evicted; None if that is not known."""
        if self._memory is None:
            return None
        with _LOCK:
            there = budget_of(self._memory, self._limit, self._chunk_size, loaded=True)
            if self._limit is not None:
                caches = [cache for ledger in self._of_model() for cache in ledger._readings]
                return _changed(there, {}, _sum(map(bytes_by_device, caches)))
            others = set(_LEDGERS) - set(self._of_model())
            missing = _sum(_missing(*run) for ledger in others for run in ledger._reserved.values())
            return _changed(there, self._evictable_bytes(), missing)

    @contextmanager
    def reserving(
        self, plan: ContextPlan, tokens: int, *, reading: bool = False, more: Bytes | None = None
    ) -> Iterator[Reserve]:
        """Yield a function that reserves the memory of a run in a cache until the block ends.

        It evicts kept prompts where memory is short, and raises MemoryBudgetExceeded if that is
        not enough; nothing has run then.

        Args:
            plan: of prompt and answer, as many tokens as there will be in the end.
            tokens: of them that are to be run in chunks.
            reading: the cache is a reading's, which counts as held.
            more: bytes that are needed besides, by device.
        """
        block = object()  # what ran before within it has ended

        def reserve(cache: SelfExtendCache) -> None:
            with _LOCK:
                self._reserved.pop(block, None)
                self._reserved[block] = (
                    cache,
                    self._needed(plan, tokens, cache, reading, more or {}),
                )

        try:
            yield reserve
        finally:
            with _LOCK:
                self._reserved.pop(block, None)

    def _needed(
        self, plan: ContextPlan, tokens: int, cache: SelfExtendCache, reading: bool, more: Bytes
    ) -> Bytes:
        """Return what a run needs; kept prompts are evicted until there is that much."""
        budget = self.budget()
        if budget is None:
            return {}
        own, kept = bytes_by_device(cache), self._evictable_bytes()
        grows = max((layer_nbytes(layer) for layer in cache.layers), default=0)
        # a limit counts readings alone, and what is free is short of any cache in memory
        counted = own if reading or self._limit is None else {}
        all_needed: dict[str, int] = {}
        short: dict[str, int] = {}
        estimate = budget.estimate(plan, max(1, min(plan.chunk_size or tokens, tokens)))
        for device in estimate.devices:
            if device.available_bytes is None:
                continue
            name, held = device.name, own.get(device.name, 0)
            planned = device.kv_cache_bytes + device.grouped_keys_bytes
            needed = device.workspace_bytes + max(planned, held) + more.get(name, 0)
            needed += grows if planned > held > 0 else 0  # a buffer with the one it replaces
            there = device.available_bytes + counted.get(name, 0) - kept.get(name, 0)
            all_needed[name] = needed
            if needed + device.weights_bytes > there:
                short[name] = needed + device.weights_bytes - there
        self._make_space(short, plan, estimate)
        return all_needed

    def _make_space(
        self, short: dict[str, int], plan: ContextPlan, estimate: MemoryEstimate
    ) -> None:
        """Evict kept prompts where bytes are short, our own first, or refuse."""
        for store in self._evictable():
            if set(short) & set(store.bytes_by_device()):
                freed = store.evict(short)
                left = {name: missing - freed.get(name, 0) for name, missing in short.items()}
                short = {name: missing for name, missing in left.items() if missing > 0}
        for name, missing in short.items():
            device = next(x for x in estimate.devices if x.name == name)
            raise no_memory(
                f"{plan.total_tokens} tokens need at most {format_bytes(device.needed_bytes)} on "
                f"{name}, and besides the readings that are held it lacks {format_bytes(missing)} "
                "of that",
                plan,
                replace(device, available_bytes=max(0, device.needed_bytes - missing)),
                "release other readings",
                "ask for a shorter answer",
                "take a smaller model or a device with more memory",
            )

    def _of_model(self) -> list[Ledger]:
        return [ledger for ledger in _LEDGERS if ledger._model is self._model]

    def _evictable(self) -> list[PrefixStore]:
        """Return the stores whose kept prompts may be evicted for this model, our own first."""
        others = _LEDGERS if self._limit is None else self._of_model()
        ledgers = [self, *(ledger for ledger in others if ledger is not self)]
        return [ledger._kept for ledger in ledgers if ledger._kept is not None]

    def _evictable_bytes(self) -> Bytes:
        return _sum(store.bytes_by_device() for store in self._evictable())


def _missing(cache: SelfExtendCache, needed: Bytes) -> Bytes:
    """Return what a run has reserved and not allocated yet."""
    has = bytes_by_device(cache)
    return {name: max(0, size - has.get(name, 0)) for name, size in needed.items()}


def _sum(many: Iterable[Bytes]) -> Bytes:
    return sum((Counter(sizes) for sizes in many), Counter[str]())


def _changed(budget: MemoryBudget, more: Bytes, less: Bytes) -> MemoryBudget:
    """Return a budget with so much more, and so much less, on each device."""
    devices = []
    for device in budget.devices:
        available = device.available_bytes + more.get(device.name, 0) - less.get(device.name, 0)
        within = min(device.total_bytes, max(0, available))
        devices.append(DeviceMemory(device.name, device.total_bytes, within))
    return replace(budget, devices=tuple(devices))


def no_memory(
    message: str, plan: ContextPlan, device: DeviceEstimate, *remedies: str
) -> MemoryBudgetExceeded:
    """Return the refusal of a plan for which a device lacks memory."""
    return MemoryBudgetExceeded(
        message,
        device=device.name,
        needed_bytes=device.needed_bytes,
        available_bytes=device.available_bytes or 0,
        needed=plan.total_tokens,
        available=0,
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        remedies=remedies,
    )
