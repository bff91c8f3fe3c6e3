"""The next tokens of a prompt through the model, in chunks, for who holds its turn."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.errors import GenerationCancelled, UnsupportedModelError

Progress = Callable[[int, int], None]
"""Called with the tokens read so far and the tokens to read, after each chunk."""

Cancelled = threading.Event | Callable[[], bool] | None
"""Looked at between chunks and tokens: an event, or a function that says whether to stop."""


def as_function(cancelled: Cancelled) -> Callable[[], bool]:
    """Return a way to ask whether to stop, whichever form it was given in."""
    if cancelled is None:
        return lambda: False
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled


class Forwards:
    """A model's forwards on token ids; takes no turn and sets nothing up.

    Args:
        model: a causal language model of transformers, in evaluation mode, on any device.
        chunk_size: tokens of a prompt to run at once.
        kv_bits: 8 or 4 to keep keys and values in so many bits; None for the model's precision.

    Raises:
        UnsupportedModelError: ``kv_bits`` is given, and no layer of the model keeps all tokens.
        ValueError: an option is out of range, or the model is in training mode.
    """

    def __init__(self, model: PreTrainedModel, chunk_size: int, kv_bits: int | None = None) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive integer, got {chunk_size}")
        self.model = model
        self._check_mode()
        self.chunk_size = chunk_size
        self.kv_bits = kv_bits
        self._new_cache(0)  # refuses bits that it can't keep keys in
        self._last_logits = _last_logits_option(model)

    def end_tokens(self) -> tuple[int, ...]:
        """Return the tokens that the model's generation configuration names as its end."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        if named is None:
            return ()
        return tuple(named) if isinstance(named, list | tuple) else (int(named),)

    def feed(
        self,
        tokens: tuple[int, ...],
        cached: int,
        cache: Cache,
        progress: Progress | None,
        is_cancelled: Callable[[], bool],
        chunk_size: int | None = None,
    ) -> Tensor:
        """Run tokens in chunks after those cached, and return the last one's logits ``[1, V]``.

        For who holds the model's turn and has set it up.

        Raises:
            GenerationCancelled: cancelled before the last chunk was read.
            UnsupportedModelError: the model keeps no keys in the cache.
        """
        total, step = cached + len(tokens), chunk_size or self.chunk_size
        for start in range(0, len(tokens), step):
            if is_cancelled():
                raise GenerationCancelled(cached + start, total)
            chunk = tokens[start : start + step]
            logits = self._forward(chunk, cache)
            done = cached + start + len(chunk)
            if cache.get_seq_length() != done:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} does not keep its keys in the cache it is given "
                    f"({cache.get_seq_length()} of {done} tokens arrived)"
                )
            if progress is not None:
                progress(done, total)
        return logits

    def _forward(self, tokens: tuple[int, ...], cache: Cache) -> Tensor:
        return self.forward([tokens], cache)

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[Sequence[int]],
        cache: Cache,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Run the next tokens of B rows and return the logits of their last ones, ``[B, V]``.

        For who holds the model's turn and has set it up.

        Args:
            rows: of one length.
            cache: what comes before them.
            positions: where they stand; counted by the model when not given.

        Raises:
            ValueError: the model is in training mode by now.
        """
        self._check_mode()
        device = next(self.model.get_input_embeddings().parameters()).device
        # Offloaded weights are on no device; accelerate's hooks then move what they are given.
        device = torch.device("cpu") if device.type == "meta" else device
        options: dict[str, Any] = dict(self._last_logits)
        if positions is not None:
            options["position_ids"] = torch.tensor(positions, device=device)
        output = self.model(
            input_ids=torch.tensor(rows, device=device),
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return output.logits[:, -1]

    def _check_mode(self) -> None:
        if self.model.training:  # its dropout would be heard in keys and answers
            raise ValueError("the model is in training mode; call model.eval() first")

    def _new_cache(self, capacity: int) -> SelfExtendCache:
        return SelfExtendCache(self.model.config, capacity, self.kv_bits)

    def _blank_cache(self) -> SelfExtendCache:
        """Return the cache of one token, which shows how this model keeps its keys."""
        cache = self._new_cache(1)
        self._forward((0,), cache)
        return cache


def _last_logits_option(model: PreTrainedModel) -> dict[str, int]:
    """Return what asks a model for the last token's logits alone, where it can be asked."""
    accepted = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
