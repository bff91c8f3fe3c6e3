"""What the tokens of an answer look at: recorded while it is generated, weighed afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfextend_rag.attention import AttentionSpec, GroupedKeys, Scoring, attention_mass
from selfextend_rag.cache import FullLayer, QuantisedLayer, RowsCache, RowsLayer
from selfextend_rag.model import AttentionCall, observed

_AT_ONCE = 64  # queries of a long answer that are weighed together
_SPARE = 16  # of the latest queries, which may prove to be no part of the answer


class AttentionWatch:
    """The attention of a run's answers to their prompts of so many tokens, as an `Observer`."""

    def __init__(self, prompt_tokens: Sequence[int], *, every_layer: bool = False) -> None:
        self.answers = [AnswerWatch(tokens, every_layer) for tokens in prompt_tokens]
        self._running: list[AnswerWatch] = []
        self._by_rows = False
        self._names: dict[nn.Module, str] = {}

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        """Watch within the block."""
        self._names = {module: name for name, module in model.named_modules()}
        with observed(model, self._see):
            hook = model.register_forward_pre_hook(self._begin_forward, with_kwargs=True)
            try:
                yield
            finally:
                hook.remove()
                for answer in self.answers:
                    answer.forget()

    def running(self, answers: Sequence[int]) -> None:
        """Note whose tokens come next."""
        self._running = [self.answers[index] for index in answers]

    def is_due(self, answer: int) -> bool:
        """Return whether so many queries of an answer are kept that they should be weighed."""
        layers = self.answers[answer].layers.values()
        return any(len(layer.queries) >= _AT_ONCE + _SPARE for layer in layers)

    def weigh(self, answer: int, *, ended: bool) -> None:
        """Weigh the queries of an answer against the keys that the cache holds now."""
        self.answers[answer].weigh(self._names, ended=ended)

    def _begin_forward(self, model: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        cache = kwargs["past_key_values"]
        ends = [cache.get_seq_length() + kwargs["input_ids"].shape[1]]
        self._by_rows = isinstance(cache, RowsCache)
        if isinstance(cache, RowsCache):
            ends = [position + 1 for position in cache.positions]
        for answer, end in zip(self._running, ends, strict=False):
            answer.begin_forward(end)

    def _see(self, call: AttentionCall) -> None:
        if isinstance(call.layer, RowsLayer):
            for index, answer in enumerate(self._running):
                answer.see(_of_row(call, call.layer, index))
        elif not self._by_rows:  # a row that attends by itself has been seen with the others
            for answer in self._running:
                answer.see(call)


def _of_row(call: AttentionCall, rows: RowsLayer, index: int) -> AttentionCall:
    """Return what one row asks; of a layer that keeps all keys, with the newest key alone."""
    here = slice(index, index + 1)
    key = rows.own_keys(index) if rows.shared is None else call.key[here]
    return replace(call, query=call.query[here], key=key, mask=None, layer=rows.shared)


class AnswerWatch:
    """The attention of one answer's tokens to everything before them.

    The positions that count are those whose output *became* the answer: from the prompt's last
    token to the last but one of the answer. Only their queries are kept while the model runs; they
    are weighed against the cached keys in one pass at the end, and in between for a long answer.

    Of the layers, in the order in which they attend, the middle half counts: the first ones mostly
    look at positions and the last ones at what to write next, and half costs half. Prompts must
    have no padding.

    Attributes:
        answer_tokens: how many tokens the answer has; kept up to date by their consumer.
        mass: for each token, the softmax weights that the answer put on it, summed over layers,
            heads and the answer's tokens; None before the end, or if no layer could be watched.
        skipped: layers that are not in it, each with the reason.
    """

    def __init__(self, prompt_tokens: int, every_layer: bool) -> None:
        self.answer_tokens = 0
        self.mass: NDArray[np.float64] | None = None
        self.skipped: dict[str, str] = {}
        self._prompt = prompt_tokens
        self._end = self._forwards = 0
        self._every_layer = every_layer
        self.layers: dict[nn.Module, _WatchedLayer] = {}
        self._complete = False  # all layers have attended once

    def begin_forward(self, end: int) -> None:
        """Note that a forward begins, after which there are ``end`` tokens."""
        self._end = end
        self._forwards += 1
        if self.layers:
            self._leave_out()

    def see(self, call: AttentionCall) -> None:
        """Note a call of the answer's alone."""
        if not self._complete:
            self.layers.setdefault(call.module, _WatchedLayer())
        layer = self.layers.get(call.module)
        if layer is not None and self._end >= self._prompt:
            layer.see(call, self._end, self._forwards)

    @torch.inference_mode()
    def weigh(self, names: Mapping[nn.Module, str], *, ended: bool) -> None:
        """Weigh many queries, or all that count once the answer has ended."""
        if not ended:
            for layer in self.layers.values():
                layer.weigh(_AT_ONCE)
        if not ended or not self.answer_tokens:
            return
        self._leave_out()
        for module, layer in self.layers.items():
            layer.weigh(self.answer_tokens - layer.weighed)
            if layer.reason:
                self.skipped[names.get(module, type(module).__name__)] = layer.reason
                continue
            self.mass = np.zeros(self._end) if self.mass is None else self.mass
            for first, found in layer.masses:
                self.mass[first : first + len(found)] += found.double().cpu().numpy()
        self.forget()

    def forget(self) -> None:
        """Drop the queries and keys."""
        self.layers.clear()
        self._complete = True

    def _leave_out(self) -> None:
        """Forget the layers that do not count, once it is known how many there are."""
        if self._complete or self._every_layer:
            return
        self._complete = True
        layers, edge = list(self.layers.items()), len(self.layers) // 4
        self.layers = dict(layers[edge : len(layers) - edge])


class _Query(NamedTuple):
    position: int
    vector: Tensor  # [H, 1, D]
    start: int  # the first position that it sees
    bias: Tensor | None  # [S], added to its scores


class _WatchedLayer:
    """The queries of one attention module, and the keys they see.

    A cache layer that keeps all keys is asked for them when they are weighed; of one that drops
    them, such as a sliding layer, those of the first call are kept and each new one.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.queries: list[_Query] = []
        self.weighed = 0  # queries
        self.masses: list[tuple[int, Tensor]] = []  # position of the first key, [S]
        self._end = self._forward = 0  # position after the latest token, and its forward
        self._keys: list[Tensor] = []
        self._layer: FullLayer | None = None  # has the keys, where it is known
        self._drops = False
        self._scoring: Scoring | None = None
        self._grouped_keys: GroupedKeys | None = None

    def see(self, call: AttentionCall, end: int, forward: int) -> None:
        """Note a call's last query, the one before position ``end``, in a forward of the model."""
        self.reason = self.reason or _unsupported_reason(call)
        if not self.reason and forward == self._forward:
            self.reason = "attends more than once for a token"
        layer = call.layer if isinstance(call.layer, FullLayer) else None
        window = None if call.is_extended else call.arguments.get("sliding_window")
        # Of a row behind others' shared keys the call has the newest key alone.
        total = end if self._layer is not None else call.key.shape[2]
        if self._end == 0:
            self._drops = total < end or window is not None
        if not self.reason and total > end:
            self.reason = f"has {total} keys for {end} tokens"
        if not self.reason and total < end and not self._drops:
            self.reason = f"keeps {total} of {end} keys, and does not say which"
        if self.reason:
            self.queries, self._keys, self._layer = [], [], None
            return
        self._end, self._forward = end, forward
        if not self._drops:
            self._layer, self._keys = layer, [call.key] if layer is None else []
        elif self._keys:
            self._keys.append(call.key[:, :, -1:].clone())
        else:
            self._keys = [call.key if layer is None else call.key.clone()]
        start = max(end - total, 0 if window is None else end - int(window))
        # The query of a prefill is a part of many: a copy releases the others.
        query = call.query[0, :, -1:].clone()
        self.queries.append(_Query(end - 1, query, start, _bias_of(call.mask, total)))
        self._scoring = call.scoring
        self._grouped_keys = None if layer is None else layer.grouped_keys

    def weigh(self, count: int) -> None:
        """Weigh so many of the queries, the earliest first."""
        batch, self.queries = self.queries[:count], self.queries[count:]
        if not batch or self._scoring is None:
            return
        self.weighed += len(batch)
        keys = self._all_keys()
        first = self._end - keys.shape[2]
        positions, queries, starts, biases = zip(*batch, strict=True)
        last, on = positions[-1] + 1 - first, keys.device
        scores = attention_mass(
            torch.cat(queries, dim=1),
            keys[0] if isinstance(self._scoring, AttentionSpec) else keys[0, :, :last],
            self._scoring,
            positions=torch.tensor(positions, device=on),
            first_key=first,
            starts=torch.tensor(starts, device=on) if self._drops else None,
            bias=_biases(biases, [p + 1 - first for p in positions], last),
            grouped_keys=self._grouped_keys,
        )
        self.masses.append((first, scores.sum(0)))
        if self._drops and len(self._keys) > 1:
            begin = min((query.start for query in self.queries), default=self._end)
            self._keys = [keys[:, :, min(begin - first, keys.shape[2] - 1) :]]

    def _all_keys(self) -> Tensor:
        layer, keys = self._layer, self._keys
        if isinstance(layer, QuantisedLayer):
            return layer.restored("keys")
        if layer is not None and layer.keys is not None:
            return layer.keys
        return torch.cat(keys, dim=2) if len(keys) > 1 else keys[0]


def _unsupported_reason(call: AttentionCall) -> str:
    """Return why the weights of a call don't follow from its queries and keys, if they don't."""
    if len(call.query) != 1:
        return f"{len(call.query)} rows"
    per_head = call.mask is not None and call.mask.ndim == 4 and call.mask.shape[1] > 1
    if per_head or call.arguments.get("position_bias") is not None:
        return "scores depend on more than queries and keys"
    if call.is_extended and call.mask is not None and not bool(call.mask.all()):
        return "padded"
    return ""


def _bias_of(mask: Tensor | None, total: int) -> Tensor | None:
    """Return what a mask adds to the scores of the last query, ``[S]``; None for nothing."""
    if mask is None:
        return None
    row = (mask[0] if mask.ndim == 2 else mask[0, 0, -1])[:total]
    if row.dtype == torch.bool:
        row = torch.zeros(row.shape, device=row.device).masked_fill_(~row, -torch.inf)
    return row.clone() if bool(row.any()) else None


def _biases(rows: Sequence[Tensor | None], ends: list[int], total: int) -> Tensor | None:
    """Return the rows, each of which ends at its query, in order over all keys."""
    given = [row for row in rows if row is not None]
    if not given:
        return None
    bias = given[0].new_zeros((len(rows), total))
    for place, row, end in zip(bias, rows, ends, strict=True):
        if row is not None:
            place[max(0, end - len(row)) : end] = row[max(0, len(row) - end) :]
    return bias
