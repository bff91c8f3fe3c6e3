"""Tiny models with random weights, sharp enough that positions matter."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig
from transformers.modeling_utils import PreTrainedModel

from selfextend_rag import SelfExtend

LENGTH = 60
METHOD = SelfExtend(4, 9)

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def build(config, seed=0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def llama(seed=0, **kwargs) -> PreTrainedModel:
    options = {"num_hidden_layers": 3, "num_key_value_heads": 2, **SIZES, **kwargs}
    return build(LlamaConfig(**options), seed)


def neox() -> PreTrainedModel:
    return build(GPTNeoXConfig(num_hidden_layers=2, rotary_pct=0.5, **SIZES))


def gemma() -> PreTrainedModel:
    """Sliding layers and one full layer, with rotary embeddings of their own."""
    options = {"num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 16, **SIZES}
    return build(Gemma3TextConfig(sliding_window=16, **options))


def ids(seed=0, batch=1, length=LENGTH):
    make = torch.Generator().manual_seed(seed)
    return torch.randint(1, 128, (batch, length), generator=make)


def close(actual, expected):
    """Float32 through a few layers, at logits of order 1 to 10."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()) + 1e-5
    )
