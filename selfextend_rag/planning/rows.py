"""How many questions memory holds at a time, beside the documents that they share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from selfextend_rag.planning.budget import MemoryBudget
from selfextend_rag.planning.layers import LayerShape
from selfextend_rag.planning.memory import DeviceEstimate, DeviceShare, ModelMemory
from selfextend_rag.planning.plan import ContextPlan
from selfextend_rag.planning.workspace import Forward, workspace_bytes

_LOGITS = 2 * 4  # bytes for each word of the vocabulary: this step's logits and the last one's


def most_rows(
    budget: MemoryBudget | None,
    plan: ContextPlan,
    own_tokens: int,
    most: int,
    held: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Return how many questions can be answered at a time, from 1 to ``most``.

    One question is what the plan itself has room for, so 1 needs nothing more.

    Args:
        budget: what memory there is; None where it is not known, which bounds nothing.
        plan: of the documents that the questions share.
        own_tokens: of the longest question and its answer.
        most: questions at a time.
        held: bytes by device that the documents' keys and values take already, and that are taken
            off what the budget says there is.
    """
    if budget is None:
        return most
    for rows in range(most, 1, -1):
        if all(device.fits for device in _devices(budget, plan, own_tokens, rows, held)):
            return rows
    return 1


def _devices(
    budget: MemoryBudget,
    plan: ContextPlan,
    own_tokens: int,
    rows: int,
    held: Mapping[str, int],
) -> list[DeviceEstimate]:
    """Return what each device needs with so many rows; their keys are counted as workspace."""
    model, chunk = budget.model, plan.chunk_size or 1
    estimate = budget.estimate(plan, chunk)
    return [
        DeviceEstimate(
            one.name,
            one.weights_bytes,
            # grouped keys among them, which a reading that was never asked may not have made yet
            max(0, one.kv_cache_bytes + one.grouped_keys_bytes - held.get(one.name, 0)),
            0,
            one.workspace_bytes + rows_bytes(model, share, plan, own_tokens, rows),
            one.available_bytes,
        )
        for one, share in zip(estimate.devices, model.shares, strict=True)
    ]


def needed_for_rows(
    budget: MemoryBudget, plan: ContextPlan, own_tokens: int, rows: int
) -> dict[str, int]:
    """Return what so many rows need at most beyond what the plan needs, by device; as `most_rows`.

    Args:
        budget: what memory there is.
        plan: of the documents that the questions share.
        own_tokens: of the longest question and its answer.
        rows: questions at a time.
    """
    return {
        share.name: rows_bytes(budget.model, share, plan, own_tokens, rows)
        for share in budget.model.shares
    }


def rows_bytes(
    model: ModelMemory, share: DeviceShare, plan: ContextPlan, own_tokens: int, rows: int
) -> int:
    """Return what so many rows need at most on a device, beyond what the plan needs there.

    Args:
        model: what its memory follows from.
        share: the device.
        plan: of the documents that the rows share.
        own_tokens: of the longest question and its answer.
        rows: questions at a time.
    """
    layers = tuple(model.layers[index] for index in share.layers)
    if not layers:
        return 0
    kept = sum(_row_bytes(layer, own_tokens, model.itemsize) for layer in layers)
    appended = max(_row_bytes(layer, own_tokens, model.itemsize) for layer in layers)
    total = plan.total_tokens
    chunk = max(1, min(plan.chunk_size or 1, total))
    alone, together = (
        workspace_bytes(layers, model.work, Forward(tokens, total, plan.settings, model.itemsize))
        for tokens in (chunk, max(chunk, rows))
    )
    # one more for the room behind the shared keys, where each row's are put while it attends
    return (rows + 1) * kept + rows * model.work.vocabulary * _LOGITS + appended + together - alone


def _row_bytes(layer: LayerShape, own_tokens: int, itemsize: int) -> int:
    """Bytes of a row's own keys and values in a layer, with the window of a sliding one."""
    slots = own_tokens if layer.window is None else own_tokens + layer.window
    return slots * layer.size * itemsize
