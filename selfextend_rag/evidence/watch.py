"""What the tokens of an answer look at: recorded while it is generated, weighed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfextend_rag.attention import Scoring, attention_mass
from selfextend_rag.cache import FullLayer, QuantisedLayer
from selfextend_rag.model import AttentionCall, observed

_AT_ONCE = 64  # queries of a long answer that are weighed together
_SPARE = 16  # of the latest queries, which may turn out to be no part of the answer


class AnswerWatch:
    """The attention of one answer's tokens to everything before them.

    The positions that count are those whose output *became* the answer: from the prompt's last
    token to the last but one of the answer. Only their queries are kept while the model runs; they
    are weighed against the cached keys in one pass at the end, and in between for a long answer.

    Of the layers, in the order in which they attend, the middle half counts: the first ones mostly
    look at positions and the last ones at what to write next, and half costs half. The model must
    run one row without padding.

    Attributes:
        answer_tokens: how many tokens the answer has; kept up to date by whoever takes them.
        mass: for each token, the softmax weights that the answer put on it, summed over layers,
            heads and the answer's tokens; None before the end, or if no layer could be watched.
        skipped: layers that are not in it, each with the reason.

    Args:
        prompt_tokens: tokens of the whole prompt.
        every_layer: count all layers.
    """

    def __init__(self, prompt_tokens: int, *, every_layer: bool = False) -> None:
        self.answer_tokens = 0
        self.mass: NDArray[np.float64] | None = None
        self.skipped: dict[str, str] = {}
        self._prompt = prompt_tokens
        self._end = self._forwards = 0
        self._every_layer = every_layer
        self._layers: dict[nn.Module, _WatchedLayer] = {}
        self._complete = False  # all layers have attended once

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Watch within the block, and weigh at its end, when the cache still has all keys."""
        with observed(model, self._see):
            hook = model.register_forward_pre_hook(self._count, with_kwargs=True)
            try:
                yield
                self._weigh(model)
            except GeneratorExit:  # whoever takes the tokens has enough, as after a stop text
                self._weigh(model)
                raise
            finally:
                hook.remove()
                self._layers.clear()

    def _count(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._end = kwargs["past_key_values"].get_seq_length() + kwargs["input_ids"].shape[1]
        self._forwards += 1
        if self._layers:
            self._leave_out()

    def _leave_out(self) -> None:
        """Forget the layers that do not count, once it is known how many there are."""
        if self._complete or self._every_layer:
            return
        self._complete = True
        modules = list(self._layers)
        for module in (*modules[: len(modules) // 4], *modules[len(modules) - len(modules) // 4 :]):
            del self._layers[module]

    def _see(self, call: AttentionCall) -> None:
        layer = self._layers.get(call.module)
        if layer is None:
            if self._complete:
                return
            layer = self._layers[call.module] = _WatchedLayer()
        if self._end >= self._prompt:
            layer.see(call, self._end, self._forwards)

    @torch.inference_mode()
    def _weigh(self, model: PreTrainedModel) -> None:
        if not self.answer_tokens:
            return
        self._leave_out()
        names = {module: name for name, module in model.named_modules()}
        total: NDArray[np.float64] | None = None
        for module, layer in self._layers.items():
            if not layer.reason:
                layer.weigh(self.answer_tokens)
            if layer.reason:
                self.skipped[names.get(module, type(module).__name__)] = layer.reason
                continue
            total = np.zeros(self._end) if total is None else total
            for first, found in layer.masses:
                total[first : first + len(found)] += found.double().cpu().numpy()
        self.mass = total


class _WatchedLayer:
    """The queries of one attention module, and the keys they see.

    A layer that keeps all keys hands them over at each call; of one that drops them, such as a
    sliding layer, those of the first call are kept and each new one.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.masses: list[tuple[int, Tensor]] = []  # position of the first key, [S]
        self._end = 0  # position after the latest token
        self._forward = 0
        self._queries: list[tuple[int, Tensor, int, Tensor | None]] = []
        self._taken = 0  # queries that have been weighed
        self._keys: list[Tensor] = []
        self._rounded: QuantisedLayer | None = None  # makes its keys anew when they are asked for
        self._drops = False
        self._scoring: Scoring | None = None

    def see(self, call: AttentionCall, end: int, forward: int) -> None:
        """Take note of a call's last query.

        Args:
            call: the call.
            end: the position after that query's.
            forward: a number of the model's forward in which it happens.
        """
        self.reason = self.reason or _objection(call)
        if not self.reason and forward == self._forward:
            self.reason = "attends more than once for a token"
        if self.reason:
            self._let_go()
            return
        self._end, self._forward = end, forward
        total = call.key.shape[2]
        window = None if call.binding else call.arguments.get("sliding_window")
        if not self._keys:
            self._drops = total < self._end or window is not None
        if total > end:
            self.reason = f"has {total} keys for {end} tokens"
            return
        if self._drops and self._keys:
            self._keys.append(call.key[:, :, -1:].clone())
        elif total == self._end or self._drops:
            layer = getattr(call.key, "cache_layer", None)
            self._rounded = layer if isinstance(layer, QuantisedLayer) else None
            self._keys = [] if self._rounded and not self._drops else [call.key]
        else:
            self.reason = f"keeps {total} of {self._end} keys, and does not say which"
            return
        start = max(self._end - total, 0 if window is None else self._end - int(window))
        row = _row(call.mask, total)
        # The query of a prefill is a part of many: a copy lets go of the others.
        query = call.query[0, :, -1:].clone()
        self._queries.append((self._end - 1, query, start, row))
        self._scoring = _scoring(call)
        if len(self._queries) >= _AT_ONCE + _SPARE:
            self._weigh_first(_AT_ONCE)

    def weigh(self, answer_tokens: int) -> None:
        """Weigh the queries that are left, up to as many as the answer has tokens."""
        self._weigh_first(max(1, answer_tokens) - self._taken)
        self._let_go()

    def _let_go(self) -> None:
        self._queries, self._keys, self._rounded = [], [], None

    def _weigh_first(self, count: int) -> None:
        batch, self._queries = self._queries[:count], self._queries[count:]
        if not batch or self._scoring is None:
            return
        self._taken += len(batch)
        keys = self._all_keys()
        first = self._end - keys.shape[2]
        positions, queries, starts, rows = zip(*batch, strict=True)
        on = keys.device
        last = positions[-1] + 1 - first
        scores = attention_mass(
            torch.cat(queries, dim=1),
            keys[0, :, :last] if self._scoring.settings is None else keys[0],
            self._scoring,
            positions=torch.tensor(positions, device=on),
            first_key=first,
            starts=torch.tensor(starts, device=on) if self._drops else None,
            bias=_bias(rows, [p + 1 - first for p in positions], last),
        )
        self.masses.append((first, scores.sum(0)))
        if self._drops and len(self._keys) > 1:
            begin = min((start for _, _, start, _ in self._queries), default=self._end)
            self._keys = [keys[:, :, min(begin - first, keys.shape[2] - 1) :]]

    def _all_keys(self) -> Tensor:
        if not self._keys and self._rounded is not None:
            return self._rounded.restored_keys()
        return torch.cat(self._keys, dim=2) if len(self._keys) > 1 else self._keys[0]


def _objection(call: AttentionCall) -> str:
    """Return why the weights of a call can't be told from its queries and keys, if they can't."""
    if len(call.query) != 1:
        return f"{len(call.query)} rows"
    per_head = call.mask is not None and call.mask.ndim == 4 and call.mask.shape[1] > 1
    if per_head or call.arguments.get("position_bias") is not None:
        return "scores depend on more than queries and keys"
    if call.binding is not None and call.mask is not None and not bool(call.mask.all()):
        return "padded"
    return ""


def _scoring(call: AttentionCall) -> Scoring:
    named = call.arguments
    scaling = named.get("scaling")
    shared: dict[str, Any] = {
        "scaling": call.query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        "softcap": named.get("softcap"),
        "sinks": named.get("s_aux"),
    }
    if call.binding is None:
        return Scoring(**shared)
    layer = getattr(call.key, "cache_layer", None)
    kept = layer.grouped_keys if isinstance(layer, FullLayer) else None
    return Scoring(
        **shared, rotary=call.binding.rotary, settings=call.binding.settings, grouped_keys=kept
    )


def _row(mask: Tensor | None, total: int) -> Tensor | None:
    """Return what a mask adds to the scores of the last query, ``[S]``; None for nothing."""
    if mask is None:
        return None
    row = mask[0] if mask.ndim == 2 else mask[0, 0, -1]
    row = row[:total]
    if row.dtype == torch.bool:
        row = torch.zeros(row.shape, device=row.device).masked_fill_(~row, -torch.inf)
    return row.clone() if bool(row.any()) else None


def _bias(rows: tuple[Tensor | None, ...], ends: list[int], total: int) -> Tensor | None:
    """Return the rows, each of which ends at its query, side by side over all keys."""
    given = next((row for row in rows if row is not None), None)
    if given is None:
        return None
    bias = given.new_zeros((len(rows), total))
    for place, row, end in zip(bias, rows, ends, strict=True):
        if row is not None:
            place[max(0, end - len(row)) : end] = row[max(0, len(row) - end) :]
    return bias
