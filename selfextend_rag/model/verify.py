"""What is measured on a model before it is relied on, by short prompts, once.

A prompt read in chunks by the stock model shows whether it can continue from a cache with several
tokens. Some models use their state for a single next token alone, and begin again, without a word,
when more than one comes; some keep it in their modules, where the next prompt writes over it. Their
prompts have to be read whole. The same prompt read by the extended model, at a group size of 1,
must give the stock model's logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfextend_rag.attention import self_extend_attention
from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.rewind import has_state
from selfextend_rag.errors import GenerationCancelled
from selfextend_rag.model.agreement import (
    FAILURES,
    LOW_PRECISION_TOLERANCE,
    disagreement,
    failure,
    gap,
)
from selfextend_rag.model.probe import Layer
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

TOKENS = 32
CUTS = (0, 27, 30, TOKENS)  # few tokens are left for a lost state to come back
_EXTENDED_CUTS = (0, 27, 31, TOKENS)  # a chunk, a chunk with a past, a single token
LAST = TOKENS + 1 - CUTS[1]  # the logits that are compared: from the end of the first chunk on
# Of the largest logit, in 16 bits: on small random models another order of sums changes 0.01 of it,
# a lost state 0.06 or more. Models without a state are given the usual tolerance.
_TOLERANCE_OF_A_STATE = 0.05

Cancelled = Callable[[], bool]


def never() -> bool:
    """Return that nothing was cancelled."""
    return False


class Runner:
    """Short forwards of a model, between which a cancellation is looked at.

    Raises:
        GenerationCancelled: instead of the next forward, once ``cancelled`` says so.
    """

    def __init__(self, model: PreTrainedModel, cancelled: Cancelled = never) -> None:
        self.model = model
        self._cancelled = cancelled
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, **arguments: Any) -> Tensor:
        """Run the model and return the last token's logits ``[B, 1, V]``, in float32."""
        return self._run({**arguments, **({"logits_to_keep": 1} if self._keeps else {})})[:, -1:]

    def all_layers(self, *, last: int = 0, **arguments: Any) -> Tensor:
        """Run the model and return the first row's last logits ``[1, last, V]``, in float32.

        Others are not made: with a vocabulary of 262,144 tokens they take longer than all layers.
        The model is not asked to leave them out, because some then leave out more.
        """

        def shorten(head: nn.Module, args: tuple[Any, ...]) -> Any:
            (hidden,) = args
            return (hidden[:1, hidden.shape[1] - last :],) if hidden.ndim == 3 else args

        head = self.model.get_output_embeddings()
        hook = None if head is None else head.register_forward_pre_hook(shorten)
        try:
            logits = self._run(arguments)
        finally:
            if hook is not None:
                hook.remove()
        return logits[:1, logits.shape[1] - last :]

    @torch.no_grad()
    def _run(self, arguments: dict[str, Any]) -> Tensor:
        if self._cancelled():
            raise GenerationCancelled(0, TOKENS)
        logits = getattr(self.model(**arguments), "logits", None)
        if logits is None:
            raise TypeError(
                f"{type(self.model).__name__} returns no logits; give the causal language model "
                "around it"
            )
        return logits.float().cpu()


class Chain:
    """One prompt read chunk by chunk with a cache; ``logits`` holds those after the last one.

    Args:
        ids: ``[1, T]``.
        cuts: where the chunks begin and end.
        closely: make logits after each chunk, and hand over position ids, which some models count
            wrongly by themselves.
    """

    def __init__(
        self, run: Runner, ids: Tensor, cuts: tuple[int, ...], *, closely: bool = False
    ) -> None:
        self._run, self._ids = run, ids
        self._left = list(pairwise(cuts))
        self._closely = closely
        self._read = 0
        self.logits: dict[int, Tensor] = {}
        self.error: Exception | None = None
        try:
            self.cache = SelfExtendCache(run.model.config)
        except FAILURES as error:
            self.error = error

    def advance(self, chunks: int = 3) -> None:
        """Read the next chunks; what goes wrong is noted, and ends it."""
        for begin, end in self._left[:chunks] if self.error is None else ():
            arguments: dict[str, Any] = {
                "input_ids": self._ids[:, begin:end],
                "past_key_values": self.cache,
            }
            if self._closely:
                positions = torch.arange(begin, end, device=self._ids.device)
                arguments["position_ids"] = positions[None]
            try:
                if self._closely or end == self._ids.shape[1]:
                    self.logits[end] = self._run(use_cache=True, **arguments)[0, -1]
                else:
                    self._run.all_layers(use_cache=True, **arguments)
            except FAILURES as error:
                self.error = error
                return
            self._read = end
        self._left = self._left[chunks:]

    @property
    def keeps_its_keys(self) -> bool:
        """Whether what was read arrived in the cache."""
        try:
            return int(self.cache.get_seq_length()) == self._read
        except ValueError:  # no layer of it keeps any
            return False

    @property
    def has_state(self) -> bool:
        """Whether something is kept that belongs to the last token alone."""
        filled = (getattr(layer, "is_initialized", True) for layer in self.cache.layers)
        return has_state(self.cache) or not all(filled)  # or it is somewhere else


def continuation(chain: Chain, whole: Tensor, dtype: torch.dtype) -> str:
    """Return why a model can't continue from a cache with several tokens, empty if it can.

    Args:
        chain: that read all but its last chunk before ``whole`` was run, and the last one after.
        whole: the last token's logits of the prompt read at once.
        dtype: the model's precision.
    """
    if chain.error is not None:
        return failure(chain.error)
    if not chain.keeps_its_keys:
        return ""  # which is refused wherever a cache is wanted
    low = _TOLERANCE_OF_A_STATE if chain.has_state else LOW_PRECISION_TOLERANCE
    return disagreement(whole, chain.logits[TOKENS], dtype, low)


def measured_continuation(run: Runner, ids: Tensor) -> tuple[str, Tensor | None]:
    """Return why a plain model can't continue from a cache with several tokens; four forwards.

    And the last token's logits of the prompt read at once, None if that fails.
    """
    chain = Chain(run, ids, CUTS)
    chain.advance(2)
    try:  # the prompt whole, which is also another prompt between the last chunks
        whole = whole_logits(run, ids)
    except FAILURES:
        return "", None  # the call raises
    chain.advance(1)
    return continuation(chain, whole, run.model.dtype), whole


def whole_logits(run: Runner, ids: Tensor) -> Tensor:
    """Return the last token's logits ``[V]`` of a prompt that is read at once."""
    cache = SelfExtendCache(run.model.config)
    return run(input_ids=ids, use_cache=True, past_key_values=cache)[0, -1]


def difference(stock: dict[int, Tensor], extended: dict[int, Tensor], dtype: torch.dtype) -> str:
    """Return what differs in the logits after some token, in words; empty when all agree."""
    for end in stock.keys() & extended.keys():
        found = gap(stock[end], extended[end], dtype)
        if found is not None:
            return (
                "its logits would change without any extension (by {:.2g} at logits up to {:.2g})"
            ).format(*found)
    return ""


def chunked_difference(
    run: Runner,
    ids: Tensor,
    whole: Tensor,
    extended: Callable[[], Any],
    continues: bool,
) -> str:
    """Return what differs between a stock model and its extension that read a prompt in chunks.

    Args:
        whole: the last ``LAST`` logits of the stock model's prompt read at once, ``[LAST, V]``.
        extended: a block in which the model is extended, at a group size of 1.
        continues: the stock model can continue from a cache.
    """
    dtype = run.model.dtype
    expected = {TOKENS: whole[-1]}
    if not continues:  # then compare what both do wrong
        stock = Chain(run, ids, _EXTENDED_CUTS, closely=True)
        stock.advance()
        if stock.error is not None:
            return failure(stock.error)
        first = {CUTS[1]: whole[CUTS[1] - TOKENS - 1]}  # without a past nothing is wrong
        problem = difference(first, stock.logits, dtype)
        if problem:
            return problem
        expected = stock.logits
    with extended():
        ours = Chain(run, ids, _EXTENDED_CUTS, closely=not continues)
        ours.advance()
    if ours.error is not None:
        return failure(ours.error)
    return difference(expected, ours.logits, dtype)


@torch.no_grad()
def layer_difference(layer: Layer, rotary: RotaryLayout, mask: Tensor) -> str:
    """Return whether our attention gives other outputs than a layer's own, in words.

    Args:
        layer: with its recordings.
        rotary: its layout.
        mask: ``[B, T]`` bool, False at padding.
    """
    for stock, raw in zip(layer.rotated, layer.raw, strict=True):
        named = stock.arguments
        scaling = named.get("scaling")
        seen = mask.to(raw.query.device)
        ours = self_extend_attention(
            raw.query, raw.key, raw.value, rotary=rotary, settings=SelfExtend(1, TOKENS),
            scaling=scaling, key_mask=None if bool(mask.all()) else seen,
            softcap=named.get("softcap"), sinks=named.get("s_aux"),
        ).transpose(1, 2)  # fmt: skip
        if gap(stock.output[seen], ours[seen], stock.output.dtype) is not None:
            return f"{layer.name}: its outputs would change without any extension"
    return ""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
