"""SelfExtend on the training model, dense and plain to read; for watching a training run.

Training itself never uses it: the model sees ordinary attention within its window alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import Decoder, Layer, rotate

BLOCK = 512


def angles(model: Decoder, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin for any positions."""
    size = model.shape.head_size
    frequencies = model.shape.rope_theta ** (-torch.arange(0, size, 2).float() / size)
    turned = positions.float()[:, None] * frequencies
    return turned.cos(), turned.sin()


def attention(q: Tensor, k: Tensor, v: Tensor, tables: dict[str, tuple], window: int) -> Tensor:
    """Return SelfExtend attention of raw q, k and v, each [H, T, D], in blocks of queries."""
    length = q.shape[1]
    near_k, far_k = rotate(k, *tables["exact"]), rotate(k, *tables["key"])
    near_q, far_q = rotate(q, *tables["exact"]), rotate(q, *tables["query"])
    outputs = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        distance = torch.arange(start, end)[:, None] - torch.arange(end)
        scores = near_q[:, start:end] @ near_k[:, :end].transpose(1, 2)
        if end > window:
            far = far_q[:, start:end] @ far_k[:, :end].transpose(1, 2)
            scores = torch.where(distance < window, scores, far)
        scores = (scores / q.shape[-1] ** 0.5).masked_fill(distance < 0, float("-inf"))
        outputs.append(scores.softmax(-1) @ v[:, :end])
    return torch.cat(outputs, 1)


@torch.no_grad()
def logits(model: Decoder, ids: Tensor, *, group_size: int, window: int, last: int) -> Tensor:
    """Return the logits [last, vocabulary] at the end of ids [T], in float32.

    ``group_size`` 1 is plain attention.
    """
    shape = model.shape
    positions = torch.arange(len(ids))
    shift = window - window // group_size
    tables = {
        "exact": angles(model, positions),
        "key": angles(model, positions // group_size),
        "query": angles(model, positions // group_size + shift),
    }
    x = model.embedding(ids)
    for layer in model.layers:
        x = _layer(layer, x, tables, window)
    x = F.rms_norm(x[-last:], (shape.hidden,), model.norm, shape.norm_eps)
    return F.linear(x, model.embedding.weight)


def _layer(layer: Layer, x: Tensor, tables: dict[str, tuple], window: int) -> Tensor:
    shape = layer.shape
    h = F.rms_norm(x, (shape.hidden,), layer.attention_norm, shape.norm_eps)
    q, k, v = layer.qkv(h).view(len(x), 3, shape.heads, -1).permute(1, 2, 0, 3)  # [H, T, D]
    mixed = attention(q, k, v, tables, window)
    x = x + layer.out(mixed.transpose(0, 1).reshape(len(x), -1))
    h = F.rms_norm(x, (shape.hidden,), layer.mlp_norm, shape.norm_eps)
    gate, up = layer.gate_up(h).chunk(2, -1)
    return x + layer.down(F.silu(gate) * up)
