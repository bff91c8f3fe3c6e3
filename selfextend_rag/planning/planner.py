"""Picks group size and neighbor window for a number of tokens; inverts the method's arithmetic.

Two limits hold. The exact one: no relative position may reach P, which ``extended_window`` says.
The empirical one, of the authors of the method: only the first half to two thirds of P is well
trained, so a sequence of N tokens should keep ``W + (N - W) / G <= rho * P``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import Literal

from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.planning.packing import Packing, pack
from selfextend_rag.planning.plan import ContextPlan, MemoryBudget, PlanRemark, Rule
from selfextend_rag.planning.refusals import NamedSize, memory_refusal, too_large, window_refusal
from selfextend_rag.positions import SelfExtend

Extension = Literal["auto", "always", "never"]

_GIVEN = ("pretraining_window", "max_group_size")  # that may not be None
NEIGHBOR_SHARE = Fraction(1, 4)
"""Default share of P for the neighbor window: the authors' 1024 of 4096, and 2048 of 8192."""


@dataclass(frozen=True, slots=True)
class ContextBudgetPlanner:
    """Finds the mildest settings under which a prompt and its answer fit.

    What fits the pretraining window runs plain. Otherwise the smallest group size is taken that
    keeps the farthest token at a position the model is well trained for; the neighbor window is
    made a multiple of it.

    Args:
        pretraining_window: P, tokens the model was trained to see.
        trained_fraction: rho, the share of P that counts as well trained; the authors found one
            half to two thirds.
        neighbor_window: W to keep, whatever the group size; then only group sizes that divide it
            are tried. By default the largest multiple of the group size within ``neighbor_share``.
        group_size: G to use when the window must be extended. It is taken as it is: the exact
            limit alone then bounds the length, not ``trained_fraction``.
        max_group_size: the largest G to try; coarser positions than that blur what is far away.
        extension: ``"auto"`` as said above; ``"always"`` extends also what fits; ``"never"`` runs
            plain at any length, for comparison: nothing is refused, and past the window no sense
            is to be expected.
        rule: ``"empirical"`` keeps ``W + (N - W) / G`` within ``trained_fraction`` of P, as the
            authors advise; ``"exact"`` uses every position below P.
        neighbor_share: share of P for the neighbor window, if that is not given.

    Raises:
        ValueError: a setting is out of range, or the settings contradict each other.
    """

    pretraining_window: int
    trained_fraction: Fraction | float = Fraction(2, 3)
    neighbor_window: int | None = None
    group_size: int | None = None
    max_group_size: int = 64
    extension: Extension = "auto"
    rule: Rule = "empirical"
    neighbor_share: Fraction | float = NEIGHBOR_SHARE

    def __post_init__(self) -> None:
        for name in ("pretraining_window", "neighbor_window", "group_size", "max_group_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and (value is not None or name in _GIVEN):
                raise ValueError(f"{name} must be an integer, got {value!r}")
        window = self.pretraining_window
        if window < 8:
            raise ValueError(f"pretraining_window must be at least 8, got {window}")
        for name in ("trained_fraction", "neighbor_share"):
            share = getattr(self, name)
            if not isinstance(share, Real) or not 0 < float(share) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {share!r}")
        if self.max_group_size < 1:
            raise ValueError(f"max_group_size must be positive, got {self.max_group_size}")
        if self.extension not in ("auto", "always", "never"):
            raise ValueError(
                f'extension must be "auto", "always" or "never", got {self.extension!r}'
            )
        if self.rule not in ("empirical", "exact"):
            raise ValueError(f'rule must be "empirical" or "exact", got {self.rule!r}')
        if self.neighbor_window is not None:  # refuses what is out of range, naming it
            SelfExtend(1, self.neighbor_window).extended_window(window)
        largest = self._default_neighbor_window()
        group = self.group_size
        if group is not None and not 1 <= group <= largest:
            raise ValueError(
                f"group_size must be from 1 to the neighbor window of {largest}, got {group}"
            )

    def plan(
        self,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        reserve_tokens: int = 0,
        turns: int = 1,
        memory: MemoryBudget | None = None,
        documents: Sequence[NamedSize] = (),
        remarks: Sequence[PlanRemark] = (),
        picture_bytes: int = 0,
    ) -> ContextPlan:
        """Return the plan for a prompt and its answer.

        Args:
            prompt_tokens: tokens of the prompt that are known now.
            max_new_tokens: tokens to keep free for an answer.
            reserve_tokens: tokens to keep free for what the prompt will still get, like questions.
            turns: how often a reserve and an answer will follow, one after another; the settings
                stay what they are meanwhile, and so do the keys that were read.
            memory: a model and what there is for it; by default memory is not looked at.
            documents: names and tokens of what the prompt is made of, to be named in an error.
            remarks: what these documents lack, for the plan to say.
            picture_bytes: what encoding one picture of the prompt takes.

        Raises:
            ContextBudgetExceeded: no allowed settings are enough; the error has the figures.
            MemoryBudgetExceeded: settings would, but memory does not hold it.
            ValueError: a number of tokens is negative.
        """
        window = self.pretraining_window
        plain = ContextPlan(
            prompt_tokens, max_new_tokens, reserve_tokens, window,
            turns=turns, remarks=tuple(remarks), picture_bytes=picture_bytes,
        )  # fmt: skip
        return self._planned(plain, memory, documents)

    def _planned(
        self, plain: ContextPlan, memory: MemoryBudget | None, documents: Sequence[NamedSize] = ()
    ) -> ContextPlan:
        plan = self._settled(plain)
        if plan is None:
            best, available = self._best()
            sufficient = self._sufficient_group_size(plain.total_tokens)
            option = "max_group_size" if self.group_size is None else "group_size"
            raise window_refusal(plain, best, available, sufficient, documents, option)
        return plan if memory is None else self.within_memory(plan, memory, documents)

    def within_memory(
        self, plan: ContextPlan, memory: MemoryBudget, documents: Sequence[NamedSize] = ()
    ) -> ContextPlan:
        """Return a plan with its chunk size and what it needs in memory.

        Raises:
            MemoryBudgetExceeded: memory does not hold it, however small the chunks.
        """
        fitted = memory.fitted(plan)
        if fitted.fits_memory:
            return fitted
        raise memory_refusal(fitted, memory, self._most_tokens(plan, memory), documents)

    def _most_tokens(self, plan: ContextPlan, memory: MemoryBudget) -> int:
        """Return the most tokens, prompt and all, that memory holds of a plan that it does not.

        -1 if it does not even hold an empty prompt.
        """
        low, high = -1, plan.prompt_tokens
        while high - low > 1:
            middle = (low + high) // 2
            shorter = replace(plan, prompt_tokens=middle)
            fits = memory.fitted(self._settled(shorter) or shorter).fits_memory
            low, high = (middle, high) if fits else (low, middle)
        return -1 if low < 0 else low + plan.later_tokens

    def plan_groups(
        self,
        document_tokens: Sequence[int],
        max_new_tokens: int,
        *,
        reserve_tokens: int = 0,
        frame_tokens: int = 0,
        turns: int = 1,
        memory: MemoryBudget | None = None,
        names: Sequence[str] = (),
        picture_bytes: int = 0,
    ) -> Packing:
        """Return the fewest prompts that each hold whole documents; other arguments as ``plan``'s.

        Args:
            document_tokens: tokens of each document, its heading included.
            frame_tokens: tokens of each prompt besides its documents.
            names: of the documents, for an error.
            picture_bytes: what encoding one picture of any of them takes.

        Raises:
            DocumentTooLarge: a document fits no prompt by itself; it is named.
        """
        total, window = frame_tokens + sum(document_tokens), self.pretraining_window
        figures = ContextPlan(
            total, max_new_tokens, reserve_tokens, window,
            turns=turns, picture_bytes=picture_bytes,
        )  # fmt: skip
        capacity = self._longest_prompt(figures, memory) - frame_tokens
        for index, size in enumerate(document_tokens):
            if size > capacity:
                name = names[index] if names else f"number {index + 1}"
                raise too_large((name, size), index, frame_tokens, figures, capacity)
        packing = pack(document_tokens, capacity)
        prompts = [frame_tokens + sum(document_tokens[i] for i in x) for x in packing.groups]
        plans = [self._planned(replace(figures, prompt_tokens=n), memory) for n in prompts]
        return replace(packing, plans=tuple(plans))

    def _longest_prompt(self, figures: ContextPlan, memory: MemoryBudget | None) -> int:
        """Return the longest prompt that fits, up to the one in ``figures``."""
        later = figures.later_tokens
        most = min(figures.prompt_tokens, self.extended_window - later)
        plan = self._settled(replace(figures, prompt_tokens=max(0, most)))
        if memory is None or most <= 0 or plan is None or memory.fitted(plan).fits_memory:
            return most
        return self._most_tokens(plan, memory) - later

    def plan_within(
        self, earlier: ContextPlan, prompt_tokens: int, max_new_tokens: int
    ) -> ContextPlan:
        """Return the plan of a prompt whose beginning was read under an earlier plan.

        Its settings are those of the earlier plan, so the exact window alone bounds it.

        Raises:
            ContextBudgetExceeded: prompt and answer do not fit the window they began in.
        """
        plan = replace(
            earlier, prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, reserve_tokens=0
        )
        if plan.free_tokens >= 0 or self.extension == "never":
            return plan
        raise ContextBudgetExceeded(
            f"prompt of {prompt_tokens} tokens + {max_new_tokens} for the answer exceeds the "
            f"extended window of {plan.extended_window} (group_size {plan.group_size}) under which "
            f"its first {earlier.prompt_tokens} tokens were read",
            needed=plan.total_tokens,
            available=plan.extended_window,
            group_size=plan.group_size,
            neighbor_window=plan.neighbor_window,
            remedies=(
                f"drop {-plan.free_tokens} tokens of question and answer",
                "read again with more tokens reserved for them",
            ),
        )

    def limit(self, settings: SelfExtend) -> int:
        """Return the longest sequence that the rule lets these settings run."""
        exact = settings.extended_window(self.pretraining_window)
        if self._rule == "exact":
            return exact
        return max(0, min(exact, self._empirical_limit(settings)))

    def _empirical_limit(self, settings: SelfExtend) -> int:
        """Solve ``W + (N - W) / G <= rho * P`` for N; in integers, as thousands of G are tried."""
        window, share = settings.neighbor_window, _fraction(self.trained_fraction)
        trained = share.numerator * self.pretraining_window - window * share.denominator
        return window + settings.group_size * trained // share.denominator

    @property
    def extended_window(self) -> int:
        """Return the longest sequence that any allowed settings reach.

        With ``extension="never"``, the pretraining window: nothing beyond it makes sense.
        """
        return self._best()[1]

    @property
    def _rule(self) -> Rule:
        return "exact" if self.group_size is not None else self.rule

    def _settled(self, plain: ContextPlan) -> ContextPlan | None:
        """Return a plan with the mildest settings that reach so far; None if there are none."""
        fits = plain.total_tokens <= self.pretraining_window
        if self.extension == "never" or (fits and self.extension == "auto"):
            return replace(plain, settings=None, rule=None)
        for settings in self._candidates():
            if plain.total_tokens <= self.limit(settings):
                return replace(plain, settings=settings, rule=self._rule)
        return None

    def _best(self) -> tuple[SelfExtend | None, int]:
        """Return the settings that reach farthest, None for plain attention, and how far."""
        best = max(self._candidates(), key=self.limit, default=None)
        reach, plain = self.limit(best) if best else 0, self.pretraining_window
        if self.extension == "never" or (self.extension == "auto" and reach < plain):
            return None, plain
        return best, reach

    def _candidates(self, least: int = 1) -> Iterator[SelfExtend]:
        """Yield the settings that may be used, mildest first."""
        widest, fixed = self._default_neighbor_window(), self.neighbor_window is not None
        if self.group_size is not None:
            group = self.group_size
            yield SelfExtend(group, widest if fixed else widest // group * group)
            return
        first = 1 if self.extension == "always" else 2
        last = min(self.max_group_size, widest)
        for group in range(max(first, least), last + 1):
            if not fixed or widest % group == 0:
                yield SelfExtend(group, widest // group * group)

    def _default_neighbor_window(self) -> int:
        share = _fraction(self.neighbor_share)
        return self.neighbor_window or int(share * self.pretraining_window)

    def _sufficient_group_size(self, needed: int) -> int | None:
        """Return the smallest group size beyond the allowed ones that would do, if there is one."""
        window = self.pretraining_window
        free = replace(self, group_size=None, max_group_size=window, extension="auto")
        for settings in free._candidates(least=needed // window):  # G reaches less than G * P
            if self.rule == "empirical" and needed > free._empirical_limit(settings):
                continue  # most of them, and cheap to say
            if needed <= free.limit(settings):
                return settings.group_size
        return None


def _fraction(value: Fraction | float) -> Fraction:
    """Return the value as a ratio; 0.66 means 66 hundredths, not its binary neighbor."""
    return value if isinstance(value, Fraction) else Fraction(str(value))
