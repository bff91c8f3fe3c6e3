"""Whether memory holds a plan, and the largest chunk of a prefill that it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from selfextend_rag.planning.memory import DeviceMemory, MemoryEstimate, ModelMemory
from selfextend_rag.planning.plan import ContextPlan

CHUNK_SIZES = (2048, 1024, 512, 256, 128, 64)
"""Tokens of a prompt to run at once, as far as memory allows; below 64, only time is lost."""


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """A model and the memory there is for it.

    Args:
        model: what its memory follows from.
        devices: what there is; a device that is not named is not looked at.
        chunk_size: tokens of a prompt to run at once; by default the most of `CHUNK_SIZES` that
            memory allows.
    """

    model: ModelMemory
    devices: tuple[DeviceMemory, ...] = ()
    chunk_size: int | None = None

    def chunk_sizes(self, prompt_tokens: int) -> tuple[int, ...]:
        """Return the chunk sizes that may be chosen, largest first."""
        if self.chunk_size is not None:
            return (self.chunk_size,)
        needed = [size for size in CHUNK_SIZES if size // 2 < prompt_tokens]
        return tuple(needed) or CHUNK_SIZES[-1:]

    def estimate(self, plan: ContextPlan, chunk_size: int) -> MemoryEstimate:
        """Return what a plan needs at most, read in chunks of this size."""
        return self.model.estimate(
            plan.prompt_tokens,
            plan.total_tokens - plan.prompt_tokens,
            plan.settings,
            chunk_size,
            {device.name: device for device in self.devices},
        )

    def fitted(self, plan: ContextPlan) -> ContextPlan:
        """Return the plan with its chunk size and memory: the largest chunk that memory holds.

        Where memory holds none, the smallest is named; ``plan.memory.fits`` says so.
        """
        for chunk_size in self.chunk_sizes(plan.prompt_tokens):
            memory = self.estimate(plan, chunk_size)
            if memory.fits:
                break
        return replace(plan, chunk_size=chunk_size, memory=memory)

    def most_tokens(self, plan: ContextPlan, settle: Callable[[ContextPlan], ContextPlan]) -> int:
        """Return the most tokens, prompt and all, that memory holds; -1 if not even an empty one.

        Args:
            plan: one that memory does not hold.
            settle: returns a plan of fewer tokens under the settings that it would get.
        """
        later = plan.total_tokens - plan.prompt_tokens
        low, high = -1, plan.prompt_tokens
        while high - low > 1:
            middle = (low + high) // 2
            shorter = self.fitted(settle(replace(plan, prompt_tokens=middle)))
            low, high = (middle, high) if shorter.fits_memory else (low, middle)
        return -1 if low < 0 else low + later
