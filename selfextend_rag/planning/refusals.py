"""What is said when a plan can't be had: by how much, and what would help, the mildest first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace

from selfextend_rag.errors import ContextBudgetExceeded, DocumentTooLarge, MemoryBudgetExceeded
from selfextend_rag.planning.memory import DeviceEstimate, format_bytes
from selfextend_rag.planning.plan import ContextPlan, MemoryBudget, added_up
from selfextend_rag.positions import SelfExtend

NamedSize = tuple[str, int]
"""The name of a document, and its tokens."""

_NAMED_AT_MOST = 5


def window_refusal(
    plan: ContextPlan,
    best: SelfExtend | None,
    available: int,
    sufficient_group_size: int | None,
    documents: Sequence[NamedSize],
    option: str,
) -> ContextBudgetExceeded:
    """Return the error for a plan, with plain attention, that exceeds every window.

    The ``best`` settings reach ``available`` tokens; the sufficient group size would do if the
    ``option`` of that name allowed it.
    """
    group = best.group_size if best else 1
    excess = plan.total_tokens - available
    remedies = [_fewer_documents(documents, excess)]
    if sufficient_group_size is not None:
        coarser = sufficient_group_size / group
        remedies.append(
            f"allow group_size {sufficient_group_size} by {option}={sufficient_group_size} (far "
            f"positions {coarser:.2g} times as coarse as with {group})"
        )
    remedies.extend(_smaller_answer(plan, excess))
    longer = -(-plan.pretraining_window * plan.total_tokens // max(1, available))
    remedies.append(f"take a model trained on about {longer} tokens")
    figures = added_up(plan).replace(" tokens of prompt", " tokens", 1)
    return ContextBudgetExceeded(
        f"prompt of {figures} exceeds the extended window of {available} (group_size {group})",
        needed=plan.total_tokens,
        available=available,
        group_size=group,
        neighbor_window=best.neighbor_window if best else None,
        remedies=remedies,
    )


def served_refusal(plan: ContextPlan, documents: Sequence[NamedSize]) -> ContextBudgetExceeded:
    """Return the error for a plan that exceeds what a server takes."""
    assert plan.served_window is not None
    excess = plan.total_tokens - plan.served_window
    figures = added_up(plan).replace(" tokens of prompt", " tokens", 1)
    return ContextBudgetExceeded(
        f"prompt of {figures} exceeds the {plan.served_window} that the server takes",
        needed=plan.total_tokens,
        available=plan.served_window,
        remedies=(
            _fewer_documents(documents, excess),
            *_smaller_answer(plan, excess),
            f"have the server started for at least {plan.total_tokens} tokens",
        ),
    )


def memory_refusal(
    plan: ContextPlan, memory: MemoryBudget, available: int, documents: Sequence[NamedSize]
) -> MemoryBudgetExceeded:
    """Return the error for a plan, with its estimate, that memory does not hold.

    ``available`` are the most tokens that it holds; -1 if it does not hold an empty prompt.
    """
    assert plan.memory is not None
    short = next(device for device in plan.memory.devices if not device.fits)
    assert short.available_bytes is not None
    excess = plan.total_tokens - available
    remedies: list[str] = []
    if available >= 0:
        remedies += [_fewer_documents(documents, excess), *_smaller_answer(plan, excess)]
    remedies += [*_smaller_chunks(plan, memory), *_fewer_bits(plan, memory)]
    remedies.append("take a smaller model or a device with more memory")
    message = (
        f"{added_up(plan)} = {plan.total_tokens} tokens need at most "
        f"{format_bytes(short.needed_bytes)} on {short.name} "
        f"({format_bytes(short.weights_bytes)} of weights, "
        f"{format_bytes(short.cache_bytes)} of keys and values, "
        f"{format_bytes(short.workspace_bytes)} to work in), and it has "
        f"{format_bytes(short.available_bytes)} for them"
    )
    return no_memory(message, plan, short, remedies, max(0, available))


def no_memory(
    message: str,
    plan: ContextPlan,
    device: DeviceEstimate,
    remedies: Sequence[str],
    available: int = 0,
) -> MemoryBudgetExceeded:
    """Return the error for a plan for which a device lacks memory.

    ``available`` are the tokens that it holds.
    """
    return MemoryBudgetExceeded(
        message,
        device=device.name,
        needed_bytes=device.needed_bytes,
        available_bytes=device.available_bytes or 0,
        needed=plan.total_tokens,
        available=available,
        group_size=plan.group_size,
        neighbor_window=plan.neighbor_window,
        remedies=remedies,
    )


def too_large(
    document: NamedSize, index: int, frame: int, figures: ContextPlan, capacity: int
) -> DocumentTooLarge:
    """Return the error for a document that fits no prompt by itself.

    A prompt holds ``capacity`` tokens of documents besides its ``frame`` and what ``figures`` keep
    for questions and answers.
    """
    (name, size), later, held = document, figures.later_tokens + frame, max(0, capacity)
    return DocumentTooLarge(
        f'the document "{name}" of {size} tokens fits no prompt by itself: it holds '
        f"{held} besides {later} for questions, answers and their frame",
        document=name,
        index=index,
        needed=size + later,
        available=held + later,
        remedies=(
            "leave it out",
            "reserve fewer tokens for questions and answers",
            "allow a larger group_size by max_group_size, or more memory, or take a model with a "
            "longer window",
        ),
    )


def to_drop(documents: Sequence[NamedSize], excess: int) -> list[NamedSize]:
    """Return the fewest documents that are together at least ``excess`` tokens.

    One that is enough is taken as small as possible; otherwise the largest come first, and the
    last of them is again as small as possible. Empty if all together are not enough.
    """
    left = sorted(documents, key=lambda document: document[1])
    if sum(size for _, size in left) < excess:
        return []
    dropped = []
    while excess > 0:
        enough = bisect_left(left, excess, key=lambda document: document[1])
        dropped.append(left.pop(min(enough, len(left) - 1)))
        excess -= dropped[-1][1]
    return dropped


def _fewer_documents(documents: Sequence[NamedSize], excess: int) -> str:
    dropped = to_drop(documents, excess) if len(documents) > 1 else []
    if not dropped or len(dropped) == len(documents):
        return f"drop {excess} tokens"
    named = [f'"{name}" ({size} tokens)' for name, size in dropped[:_NAMED_AT_MOST]]
    more = len(dropped) - len(named)
    rest = f" and {more} more" if more else ""
    one = "document" if len(dropped) == 1 else "documents"
    return f"drop the {one} {', '.join(named)}{rest}"


def _smaller_answer(plan: ContextPlan, excess: int) -> Iterator[str]:
    shorter = plan.max_new_tokens - -(-excess // plan.turns)
    if shorter > 0:
        yield f"keep {shorter} tokens for the answer instead of {plan.max_new_tokens}"


def _smaller_chunks(plan: ContextPlan, memory: MemoryBudget) -> Iterator[str]:
    """A chunk size that the caller fixed may be what is too much."""
    if memory.chunk_size is not None:
        free = replace(memory, chunk_size=None).fitted(plan)
        if free.fits_memory:
            yield f"read {free.chunk_size} tokens at a time instead of {memory.chunk_size}"


def _fewer_bits(plan: ContextPlan, memory: MemoryBudget) -> Iterator[str]:
    """The mildest rounding of keys and values with which memory would hold the plan."""
    model = memory.model
    assert plan.memory is not None
    assert plan.chunk_size is not None
    offered = {bits for layer in model.layers for bits in layer.rounded_bytes}
    for bits in sorted(offered, reverse=True):
        if model.kv_bits is not None and bits >= model.kv_bits:
            continue
        rounded = replace(memory, model=replace(model, kv_bits=bits))
        needed = rounded.estimate(plan, plan.chunk_size)
        if needed.fits:
            yield (
                f"keep keys and values in {bits} bits by kv_bits={bits} (at most "
                f"{format_bytes(needed.needed_bytes)} in all instead of "
                f"{format_bytes(plan.memory.needed_bytes)})"
            )
            return
