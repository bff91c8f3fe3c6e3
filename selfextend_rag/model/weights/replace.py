"""Linear layers and embeddings of a loaded model, replaced by such of fewer bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

from selfextend_rag.errors import UnsupportedModelError, in_short
from selfextend_rag.model.verify import FAILURES
from selfextend_rag.model.weights.layers import (
    DIGEST_BYTES,
    GROUP,
    Embedding8,
    Linear4,
    Linear8,
)

WEIGHT_BITS = (8, 4)

_FEW = 8  # words of which an embedding is measured


def check_weight_bits(bits: int | None) -> None:
    """Raise a ValueError for what are no bits that weights are kept in."""
    if bits is not None and (isinstance(bits, bool) or bits not in WEIGHT_BITS):
        raise ValueError(f"weight_bits must be 8, 4 or None, got {bits!r}")


def round_weights(model: PreTrainedModel, bits: int) -> None:
    """Replace the linear layers and embeddings of a model by such of fewer bits, in place.

    With 4 bits, embeddings and the layer that scores the vocabulary have 8, and so has any whose
    shape the kernel does not take. Norms and biases stay as they are. The model can't be saved
    afterwards.

    Raises:
        UnsupportedModelError: this processor or device has no kernels for it, the model is
            quantised already, most of its weights are in other layers, or it does not run so.
        ValueError: there are no such bits.
    """
    check_weight_bits(bits)
    if reason := _unsupported_reason(model, bits):
        raise UnsupportedModelError(f"weight_bits={bits} can't be had: {reason}")
    for module, name, old in list(_rounded(model)):
        new: nn.Module
        if isinstance(old, nn.Embedding):
            new = Embedding8(old.weight, _scaled(old) or 1.0)
        elif bits == 4 and _fits_4_bits(model, old):
            new = Linear4(old)
        else:
            new = Linear8(old)
        setattr(module, name, new.train(mode=False))
    setattr(model, "save_pretrained", _refuse_saving)  # noqa: B010  # mypy sees a method
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except FAILURES as error:
        raise UnsupportedModelError(
            f"weight_bits={bits} can't be had: {type(model).__name__} does not run with replaced "
            f"layers: {in_short(error)}"
        ) from error


def rounded_sizes(model: PreTrainedModel, bits: int) -> dict[str, int]:
    """Return the bytes of every weight and buffer that `round_weights` would make; none is read.

    Args:
        model: with weights or on the meta device.

    Raises:
        UnsupportedModelError: see `round_weights`; what only a run shows is not seen.
    """
    check_weight_bits(bits)
    if reason := _unsupported_reason(model, bits):
        raise UnsupportedModelError(f"weight_bits={bits} can't be had: {reason}")
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    sizes, gone = {}, set()
    for _, _, old in _rounded(model):
        rows, columns = old.weight.shape
        size = rows * columns + (rows + columns) * 4 + DIGEST_BYTES
        if isinstance(old, nn.Embedding):
            size = rows * columns + rows * 4
        elif bits == 4 and _fits_4_bits(model, old):
            size = rows * columns // 2 + rows * columns // GROUP * 4
        sizes[f"{names[id(old)]}.weight"] = size
        gone.add(id(old.weight))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in gone:
            sizes[name] = tensor.nbytes
    return sizes


def packed_bytes(module: nn.Module) -> int:
    """Return the bytes of the weights that a layer holds besides its parameters and buffers."""
    return module.in_features * module.out_features if isinstance(module, Linear8) else 0


def _unsupported_reason(model: PreTrainedModel, bits: int) -> str:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "this build of torch has no FBGEMM, which needs an x86 processor with AVX2"
    if getattr(model.config, "quantization_config", None) is not None:
        return "the weights are quantised already, by the model's quantization_config"
    devices = {str(x) for x in (getattr(model, "hf_device_map", None) or {}).values()}
    devices |= {x.device.type for x in model.parameters()} - {"meta"}
    if devices - {"cpu"}:
        return f"it is for the CPU, and the model is on {', '.join(sorted(devices))}"
    if model.config.get_text_config(decoder=True) is not model.config:
        return "the model takes more than text, and its other parts were not measured so"
    if bits == 4 and model.dtype != torch.bfloat16:
        return f"4 bits are computed in bfloat16, and the model is in {_name(model.dtype)}"
    rounded = {id(old.weight): old.weight.numel() for _, _, old in _rounded(model)}
    if 2 * sum(rounded.values()) < sum(x.numel() for x in model.parameters()):
        return "most weights of this model are in other layers than torch's Linear and Embedding"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield what is replaced, with the module that holds it and its name there."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    for module in model.modules():
        for name, child in module.named_children():
            # a layer of a derived class may compute something else
            linear = type(child) is nn.Linear and child.in_features > 1
            if (linear or _scaled(child) is not None) and child.weight.dtype in floats:
                yield module, name, child


def _scaled(module: nn.Module) -> float | None:
    """Return the factor on its rows with which an embedding answers; None for any other module.

    It is measured: Gemma's embeddings, of a class of their own, have one.
    """
    if type(module) is nn.Embedding:
        return 1.0 if module.max_norm is None else None
    if not isinstance(module, nn.Embedding):
        return None
    if module.weight.is_meta:
        return 1.0  # of an empty model the sizes alone are asked for
    ids = torch.arange(min(_FEW, module.num_embeddings))
    with torch.inference_mode():
        rows, found = module.weight[ids].double(), module(ids).double()
    if found.shape != rows.shape or not rows.any():
        return None
    factor = float((rows * found).sum() / (rows * rows).sum())
    tolerance = 0.01 * float(found.abs().max())  # a bfloat16 has 8 bits
    return factor if float((rows * factor - found).abs().max()) <= tolerance else None


def _fits_4_bits(model: PreTrainedModel, layer: nn.Linear) -> bool:
    head = layer is model.get_output_embeddings()
    return not head and not layer.out_features % 32 and not layer.in_features % GROUP


def _refuse_saving(*_: object, **__: object) -> NoReturn:
    raise UnsupportedModelError(
        "a model that was loaded with weight_bits can't be saved; save it as it was loaded without"
    )
