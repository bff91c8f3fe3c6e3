"""What an evaluation needs of a model, and that for transformers' models."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.positions import PositionMap

_NLL_BLOCK = 1024
_WHOLE = 8192  # tokens up to which a text is run at once


class EvaluatedModel(Protocol):
    """A causal model, by token ids."""

    def generate(self, token_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Return the greedy continuation, without the prompt and end token."""

    def token_nll(self, token_ids: Sequence[int]) -> list[float]:
        """Return the negative log-likelihood of each token but the first, in nats."""


class HuggingFaceModel:
    """A transformers model, plain or under SelfExtend.

    The extension is switched on for each call alone, so plain and extended evaluations of one
    loaded model can alternate.

    Args:
        model: a causal model of transformers.
        settings: SelfExtend's settings; None leaves the model as it is.
        end_ids: tokens that end an answer; the generation settings' by default.
        kv_bits: 8 or 4 to keep keys and values in so many bits; None for the model's precision.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: PositionMap | None = None,
        *,
        end_ids: Sequence[int] = (),
        kv_bits: int | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.kv_bits = kv_bits
        default = model.generation_config.eos_token_id
        self.end_ids = list(end_ids) or (
            [] if default is None else [default] if isinstance(default, int) else list(default)
        )

    def _attention(self) -> AbstractContextManager[object]:
        if self.settings is None:
            return nullcontext()
        from selfextend_rag.model import extended

        return extended(self.model, self.settings)

    def _cache(self) -> SelfExtendCache:
        return SelfExtendCache(self.model.config, kv_bits=self.kv_bits)

    @torch.inference_mode()
    def generate(self, token_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Return the greedy continuation, without the prompt and end token."""
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        with self._attention():
            model: Any = self.model  # which does not say that it can generate
            output: Tensor = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self._cache(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,  # and no penalties, which some models' generation settings name
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                min_new_tokens=None,
                eos_token_id=self.end_ids or None,
            )
        new: list[int] = output[0, ids.shape[1] :].tolist()
        return new[:-1] if new and new[-1] in self.end_ids else new

    @torch.inference_mode()
    def token_nll(self, token_ids: Sequence[int]) -> list[float]:
        """Return the negative log-likelihood of each token but the first, in nats.

        A long text is run in chunks, since its logits for every word of the vocabulary would not
        fit in memory at once.
        """
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        total = ids.shape[1]
        chunk = total if total <= _WHOLE else _NLL_BLOCK
        # the cache rounds what attention sees; without rounding or chunks none is needed
        cache = self._cache() if self.kv_bits or chunk < total else None
        values: list[float] = []
        with self._attention():
            for start in range(0, total, chunk):
                part = ids[:, start : start + chunk]
                outputs = self.model(part, past_key_values=cache, use_cache=cache is not None)
                values += _nll(outputs.logits[0], ids[0, start + 1 : start + chunk + 1])
        return values


def _nll(logits: Tensor, targets: Tensor) -> list[float]:
    """Return the negative log-likelihood of the tokens ``[T]`` that follow logits ``[T+1, V]``."""
    values: list[float] = []
    for start in range(0, len(targets), _NLL_BLOCK):
        target = targets[start : start + _NLL_BLOCK]
        block = logits[start : start + len(target)].float()
        values += torch.nn.functional.cross_entropy(block, target, reduction="none").tolist()
    return values
