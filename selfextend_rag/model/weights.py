"""Weights in 8 or 4 bits on the CPU: linear layers and embeddings of a loaded model, replaced.

A token of an answer reads every weight once, so fewer bytes are less time. Weights of 8 bits are
multiplied as integers by FBGEMM: their rows and columns are scaled, and activations are two rows of
7 bits, a coarse one and what it leaves out, so that they keep 14 bits and no sum overflows. Weights
of 4 bits, in groups of 32 with a scale and a zero each, are multiplied by torch's own kernel in
bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from selfextend_rag.errors import UnsupportedModelError, in_short
from selfextend_rag.model.verify import FAILURES

WEIGHT_BITS = (8, 4)

_GROUP = 32  # weights of a row that share a scale, in 4 bits
_STEPS = 127  # of 7 bits
_HALF = _STEPS / 2
_REACH = 63.499  # of a row scaled for them: below a half, whichever way it was rounded
_TINY = torch.finfo(torch.float32).tiny
_MANY = 128  # rows from which it pays to restore the weights, where that is faster at all
_DIGEST_BYTES = 16
_FEW = 8  # words of which an embedding is measured
_AT_ONCE = 8192  # rows that are rounded at a time


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
            new = Embedding8.of(old)
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
        size = rows * columns + (rows + columns) * 4 + _DIGEST_BYTES
        if isinstance(old, nn.Embedding):
            size = rows * columns + rows * 4
        elif bits == 4 and _fits_4_bits(model, old):
            size = rows * columns // 2 + rows * columns // _GROUP * 4
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
    return not head and not layer.out_features % 32 and not layer.in_features % _GROUP


def _refuse_saving(*_: object, **__: object) -> NoReturn:
    raise UnsupportedModelError(
        "a model that was loaded with weight_bits can't be saved; save it as it was loaded without"
    )


class Linear8(nn.Module):
    """A linear layer whose weights are integers of 8 bits, scaled by row and by column.

    Without scales of columns, those few that are larger than others would take the others' bits.

    Attributes:
        scales: ``[out]``, float32.
        columns: ``[in]``, float32; activations are multiplied by them.
        digest: of the weights, ``[16]`` bytes, by which readings know them.
    """

    precision = torch.bfloat16  # in which two ways to run a model are compared
    scales: Tensor
    columns: Tensor
    digest: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        columns = _columns(weight)
        whole, scales = _in_8_bits(weight, columns)
        self.bias = layer.bias
        self.register_buffer("scales", scales)
        self.register_buffer("columns", columns)
        digest = xxhash.xxh3_128_digest(whole.numpy().data)
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self._packed = _packed(whole, scales)
        self._span = torch.zeros(1, layer.in_features)
        self._span[0, 0], self._span[0, 1] = _HALF, -_HALF

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, in the precision of ``x``."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) >= _MANY and _restores(x.dtype):
            rows = rows * self.columns.to(x.dtype)
            out = F.linear(rows, self.whole_numbers().to(x.dtype)) * self.scales.to(x.dtype)
        else:
            out = self._by_integers(rows * self.columns)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def whole_numbers(self) -> Tensor:
        """Return the weights without their scales, ``[out, in]``, int8."""
        found: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()
        return found

    def _by_integers(self, rows: Tensor) -> Tensor:
        """Return the products with rows ``[R, in]`` in float32, which are overwritten.

        FBGEMM rounds the rows it is given to 7 bits, between the least and the largest number in
        them. One more row spans -63.5 to 63.5, so that these steps are 1 and whole numbers stay.
        """
        largest = torch.linalg.vector_norm(rows, torch.inf, -1, True).clamp_min_(_TINY)
        rows.mul_(_REACH / largest)
        coarse = rows.round().clamp_(-63, 63)
        given = torch.cat([coarse, rows.sub_(coarse).mul_(_STEPS), self._span])
        out: Tensor = torch.ops.quantized.linear_dynamic(given, self._packed, True)
        count = len(rows)
        return out[:count].add_(out[count:-1], alpha=1 / _STEPS).mul_(largest.div_(_REACH))


class Linear4(nn.Module):
    """A linear layer whose weights are of 4 bits, in groups of 32 with a scale and a zero."""

    precision = torch.bfloat16
    weight: Tensor
    groups: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        grouped = layer.weight.detach().float().unflatten(1, (-1, _GROUP))
        least, most = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        steps = ((most - least) / 15).clamp_min_(_TINY)
        steps, zeros = steps.bfloat16(), (least + 8 * steps).bfloat16()
        whole = ((grouped - zeros.float()) / steps.float()).round_().add_(8).clamp_(0, 15)
        packed = torch._convert_weight_to_int4pack_for_cpu(whole.flatten(1).int(), 1)
        self.bias = layer.bias
        self.register_buffer("weight", packed)
        # [in / 32, out, 2], as the kernel reads them
        groups = torch.cat([steps, zeros], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("groups", groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, in the precision of ``x``."""
        rows = x.reshape(-1, self.in_features).bfloat16()
        out = torch._weight_int4pack_mm_for_cpu(rows, self.weight, _GROUP, self.groups)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


class Embedding8(nn.Module):
    """An embedding whose rows are integers of 8 bits, each with a scale; the model's factor too."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, factor: float) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self._dtype = weight.dtype
        whole, scales = _in_8_bits(weight.detach())
        self.register_buffer("weight", whole)
        self.register_buffer("scales", scales * factor)

    @classmethod
    def of(cls, module: nn.Embedding) -> Embedding8:
        """Return one in place of a module for which there is a factor, see `round_weights`."""
        return cls(module.weight, _scaled(module) or 1.0)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids, ``[..., D]``."""
        return (self.weight[ids].float() * self.scales[ids].unsqueeze(-1)).to(self._dtype)


def _columns(weight: Tensor) -> Tensor:
    """Return the root mean square of each column, float32; 1 where there are zeros alone."""
    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for some in weight.split(_AT_ONCE):
        squares += some.float().square().sum(0)
    return (squares / len(weight)).sqrt_().masked_fill_(squares == 0, 1).float()


def _in_8_bits(weight: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, int8, and the scale of each row, float32.

    Rows are of the weights, or of what is left when each column is divided by its number.
    """
    whole, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for start in range(0, len(weight), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        some = weight[part].float()
        some = some if columns is None else some / columns
        scales[part] = some.abs().amax(1).div_(127).clamp_min_(_TINY)
        whole[part] = (some / scales[part].unsqueeze(1)).round_()
    return whole, scales


def _packed(whole: Tensor, scales: Tensor) -> object:
    """Return whole numbers and the scales of their rows as FBGEMM keeps them."""
    zeros = torch.zeros(len(whole), dtype=torch.int)
    with warnings.catch_warnings():  # that later versions will have other tensors for it
        warnings.simplefilter("ignore", UserWarning)
        numbers = torch._make_per_channel_quantized_tensor(whole, scales, zeros, 0)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            packed: object = torch.ops.quantized.linear_prepack(numbers, None)
        finally:
            torch.backends.quantized.engine = before
    return packed


def _restores(dtype: torch.dtype) -> bool:
    """Return whether many rows are multiplied faster by restored weights than by integers."""
    if dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported():
        return True
    return not torch.cpu._is_vnni_supported()
