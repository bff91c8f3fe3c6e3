"""Random weights under which attention is peaked and every part of a model has a say."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw matrices at unit gain, and move biases, norms and sinks off their neutral values.

    Vectors are nudged, not redrawn: a state-space layer's decay rates must keep their sign.
    """
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim >= 2:
            weight.copy_(noise * weight.shape[-1] ** -0.5)
        else:
            weight.add_(noise * 0.1)
    return model
