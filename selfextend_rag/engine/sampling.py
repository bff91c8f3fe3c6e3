"""One token from the logits, by transformers' own processors and a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfextend_rag.engine.constraint import TokenConstraint
from selfextend_rag.engine.settings import GenerationSettings


class Sampler:
    """Picks the tokens of one answer.

    Args:
        settings: what to pick by, among the tokens that the constraint leaves.
        prompt: the prompt's tokens, for the repetition penalty.
        device: where the logits will be.
        constraint: what restricts the tokens; told of each that is picked.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        prompt: Sequence[int],
        device: torch.device,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self._constraint = constraint
        self._greedy = settings.temperature == 0
        self._processors = _processors(settings)
        self._penalised = settings.repetition_penalty != 1
        self._seen = set(prompt) if self._penalised else set()
        self._generator = torch.Generator(device)
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    @torch.inference_mode()
    def pick(self, logits: Tensor) -> int:
        """Return the next token for logits ``[1, V]``."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._constraint is not None:
            scores = self._constraint.mask(scores)
        # The penalty asks which tokens occurred, not where: each stands once, in any order.
        seen: Any = torch.tensor([sorted(self._seen)], dtype=torch.long, device=scores.device)
        scores = self._processors(seen, scores)
        if self._greedy:
            token = int(scores.argmax(dim=-1))
        else:
            probabilities = scores.softmax(dim=-1)
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._penalised:
            self._seen.add(token)
        return token


def _processors(settings: GenerationSettings) -> LogitsProcessorList:
    """Return the processors in the order in which ``transformers.generate`` applies them."""
    chain = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature == 0:
        return chain
    if settings.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(MinPLogitsWarper(settings.min_p))
    return chain
