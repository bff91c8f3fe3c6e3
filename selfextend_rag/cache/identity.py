"""What cached keys belong to: the weights to the last bit, the configuration, the tokenizer."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Iterator
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.errors import UnsupportedModelError

_AT_ONCE = 64 << 20  # bytes of a tensor that are moved to the CPU at a time
_UNIMPORTANT = frozenset(("transformers_version", "dtype", "architectures", "torch_dtype"))

_LOOKED_AT = 16  # tensors on a device of which a few numbers are read: each makes the host wait
_SAMPLE = 32  # numbers

_State = tuple[Hashable, ...]
_known: WeakKeyDictionary[PreTrainedModel, tuple[_State, str]] = WeakKeyDictionary()
_tokenizers: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[_State, str]] = WeakKeyDictionary()
_lock = threading.Lock()


def model_state(model: nn.Module) -> _State:
    """Return what changes with a model's weights and adapters; takes about 15 µs a weight.

    Two equal states mean that nobody replaced a weight, changed one in place by an operation that
    torch counts, gave the model other rotary frequencies, or switched, merged or parted an adapter
    of PEFT. Changes that torch does not count (through ``.data``) are seen in a few numbers of each
    weight on the CPU, and of some of those on other devices: changes of all weights are seen, those
    of a single number may not be.
    """
    tensors = [part for x in _kept_tensors(model) for part in parts_of(x) if not part.is_meta]
    waits = any(x.device.type != "cpu" for x in tensors)
    step = max(1, len(tensors) // _LOOKED_AT) if waits else 1
    return (
        tuple((x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors),
        tuple(_few_numbers(x) for x in tensors[::step]),
        _adapters(model),
        rotary_state(model),
    )


def rotary_state(model: nn.Module) -> tuple[tuple[tuple[float, ...], float], ...]:
    """Return the (inverse frequencies, scale) that the rotary modules of ``model`` were made with.

    Some modules write other ones while a prompt is long; of those it is what they go back to.
    """
    found = []
    for module in model.modules():
        kind = str(getattr(module, "rope_type", ""))
        rewrites = "dynamic" in kind or "longrope" in kind
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or buffer.is_meta:
                continue
            if rewrites and "original" not in name:
                continue
            scale = 1.0 if rewrites else getattr(module, "attention_scaling", 1.0)
            scale = getattr(module, name.replace("inv_freq", "attention_scaling"), scale)
            found.append((tuple(buffer.double().flatten().tolist()), float(scale)))
    return tuple(found)


def _kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and the buffers that are saved with them.

    Others are made from the input of a run, or are looked at by `rotary_state`.
    """
    yield from model.parameters()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return the ordinary tensors that a tensor consists of: itself, or a quantised one's."""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and hasattr(
        tensor, "__tensor_flatten__"
    ):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in parts_of(getattr(tensor, name))]
    return [tensor]


def _adapters(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return which adapters PEFT's layers add to their weights, by layer, and how strongly."""
    return tuple(
        tuple(
            repr(getattr(module, name, None))
            for name in ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
        )
        for module in model.modules()
        if isinstance(getattr(type(module), "disable_adapters", None), property)
    )


def _few_numbers(tensor: Tensor) -> bytes:
    if tensor.is_quantized or not tensor.numel():
        return b""
    rows = tensor.detach().flatten() if tensor.is_contiguous() else tensor.detach()[:1].flatten()
    few = rows[:: max(1, rows.numel() // _SAMPLE)][:_SAMPLE]
    return few.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def model_fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """Return what tells this model from others, in named parts.

    The weights are read once, at the speed of memory, and the result is kept until one of them is
    replaced or changed in place.

    Raises:
        UnsupportedModelError: weights are offloaded, and so can't be looked at.
    """
    values = model.config.to_dict()
    kept = {k: v for k, v in values.items() if k[:1] != "_" and k not in _UNIMPORTANT}
    # to a few digits: devices compute the last ones differently
    rotary = [[f"{x:.3g}" for x in (*found, scale)] for found, scale in rotary_state(model)]
    return {
        "weights": _weights(model),
        "configuration": digest(json.dumps(kept, sort_keys=True, default=str)),
        "rotary frequencies": digest(repr(rotary)),
    }


def token_fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kv_bits: int | None
) -> dict[str, str]:
    """Return what cached keys of token ids belong to, whatever prompt they come from.

    Raises:
        UnsupportedModelError: weights are offloaded, and so can't be looked at.
    """
    return {
        **model_fingerprint(model),
        "tokenizer": _tokenizer(tokenizer),
        "keys and values": f"in {'full precision' if kv_bits is None else f'{kv_bits} bits'}",
    }


def digest(text: str) -> str:
    """Return 32 hexadecimal digits for a text: equal for equal texts, different for others."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest all that decides how text becomes tokens; the long part only when it may differ."""
    state = (len(tokenizer), tokenizer.chat_template, repr(tokenizer.special_tokens_map))
    if tokenizer in _tokenizers and _tokenizers[tokenizer][0] == state:
        return _tokenizers[tokenizer][1]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = dict(tokenizer.get_vocab()) if backend is None else json.loads(backend.to_str())
    if backend is not None:
        for option in ("truncation", "padding"):  # of the last call, not of the tokenizer
            content.pop(option, None)
    made = digest(json.dumps([content, type(tokenizer).__name__, *state], sort_keys=True))
    _tokenizers[tokenizer] = state, made
    return made


def _weights(model: PreTrainedModel) -> str:
    weights = sorted(_named_weights(model), key=lambda pair: pair[0])
    state = (*(name for name, _ in weights), *model_state(model))
    with _lock:
        if model in _known and _known[model][0] == state:
            return _known[model][1]
        whole = xxhash.xxh3_128()
        done: dict[Hashable, str] = {}  # tied weights are read once
        for name, tensor in weights:
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if place not in done:
                done[place] = _tensor_digest(name, tensor)
            whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {done[place]}\n".encode())
        adapters = _adapters(model)
        whole.update(repr(adapters).encode() if adapters else b"")
        _known[model] = state, whole.hexdigest()
        return _known[model][1]


def _named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a model's state, those within quantised and packed ones by number."""
    state: dict[str, object] = model.state_dict(keep_vars=True)
    for name, value in state.items():
        packed = value if isinstance(value, tuple) else (value,)
        parts = [part for x in packed if isinstance(x, Tensor) for part in parts_of(x)]
        for number, part in enumerate(parts):
            yield (name if len(parts) == 1 else f"{name} {number}"), part


def _tensor_digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        raise UnsupportedModelError(
            f"the weights of {name} are offloaded, so that readings can't be tied to them; load "
            "the model without offload to save or load readings"
        )
    plain = tensor.dequantize() if tensor.is_quantized else tensor
    flat = plain.detach().contiguous().reshape(-1).view(torch.uint8)
    hashed = xxhash.xxh3_128()
    for start in range(0, len(flat), _AT_ONCE):
        hashed.update(flat[start : start + _AT_ONCE].cpu().numpy().data)
    return hashed.hexdigest()
