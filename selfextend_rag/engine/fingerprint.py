"""What identifies a model: every bit of its weights, and its configuration."""

from __future__ import annotations

import json
import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from selfextend_rag.errors import UnsupportedModelError

_AT_ONCE = 64 << 20  # bytes of a tensor that are moved to the CPU at a time
_UNIMPORTANT = frozenset(("transformers_version", "dtype", "architectures", "torch_dtype"))

_State = tuple[tuple[str, int, int], ...]
_known: WeakKeyDictionary[PreTrainedModel, tuple[_State, str]] = WeakKeyDictionary()
_lock = threading.Lock()


def model_fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """Return what tells this model from others, in named parts.

    The weights are read once, at the speed of memory, and the result is kept until one of them is
    replaced or changed in place.

    Raises:
        UnsupportedModelError: weights are offloaded, and so can't be looked at.
    """
    return {"weights": _weights(model), "configuration": _configuration(model)}


def digest(text: str) -> str:
    """Return 32 hexadecimal digits that stand for a text."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def _configuration(model: PreTrainedModel) -> str:
    values = model.config.to_dict()
    kept = {k: v for k, v in values.items() if k[:1] != "_" and k not in _UNIMPORTANT}
    return digest(json.dumps(kept, sort_keys=True, default=str))


def _weights(model: PreTrainedModel) -> str:
    tensors: dict[str, Any] = model.state_dict(keep_vars=True)
    weights = {name: x for name, x in sorted(tensors.items()) if isinstance(x, Tensor)}
    state = tuple((name, x.data_ptr(), _version(x)) for name, x in weights.items())
    with _lock:
        if model in _known and _known[model][0] == state:
            return _known[model][1]
        whole = xxhash.xxh3_128()
        done: dict[tuple[Any, ...], str] = {}  # tied weights are read once
        for name, tensor in weights.items():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in done:
                done[place] = _tensor(name, tensor)
            whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {done[place]}\n".encode())
        _known[model] = state, whole.hexdigest()
        return _known[model][1]


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; inference tensors do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _tensor(name: str, tensor: Tensor) -> str:
    if tensor.device.type == "meta":
        raise UnsupportedModelError(
            f"the weights of {name} are offloaded, so that readings can't be tied to them; load "
            "the model without offload to save or load readings"
        )
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    hashed = xxhash.xxh3_128()
    for piece in flat.split(_AT_ONCE):
        hashed.update(piece.cpu().numpy().data)
    return hashed.hexdigest()
