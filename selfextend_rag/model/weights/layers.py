"""Layers whose weights have 8 or 4 bits.

Weights of 8 bits are multiplied as integers by FBGEMM: their rows and columns are scaled, and
activations are two rows of 7 bits, a coarse one and what it leaves out, so that they keep 14 bits
and no sum overflows. Many rows, as in reading, are multiplied by restored weights where that is
faster: in bfloat16 on a processor with AMX. Weights of 4 bits, in groups of 32 with a scale and a
zero each, are multiplied by torch's own kernel in bfloat16.
"""

from __future__ import annotations

import warnings

import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32  # weights of a row that share a scale, in 4 bits
DIGEST_BYTES = 16
_STEPS = 127  # of 7 bits
_HALF = _STEPS / 2
_REACH = 63 + 511 / 1024  # of a row scaled for them: below a half, whichever way it was rounded
_TINY = torch.finfo(torch.float32).tiny
_MANY = 128  # rows from which it pays to restore the weights, where that is faster at all
_AT_ONCE = 8192  # rows that are rounded at a time
_RESTORED_AT_ONCE = 512  # rows that are restored at a time, in float32, while documents are read


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
        self.bias = layer.bias
        weight = layer.weight.detach()
        self.register_buffer("columns", _columns(weight))
        whole, scales = _in_8_bits(weight, self.columns)
        self.register_buffer("scales", scales)
        digest = xxhash.xxh3_128_digest(whole.numpy().data)
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self._packed = _packed(whole, scales)
        self._frame = torch.zeros(3, self.in_features)
        self._frame[2, 0], self._frame[2, 1] = _HALF, -_HALF

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias``, in the precision of ``x``."""
        out = self._products(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def whole_numbers(self) -> Tensor:
        """Return the weights without their scales, ``[out, in]``, int8."""
        found: Tensor = torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()
        return found

    def _products(self, rows: Tensor) -> Tensor:
        if len(rows) == 1:
            return self._of_one(rows[0])
        if len(rows) >= _MANY and (dtype := _restored_in(rows.dtype)) is not None:
            return F.linear(rows.to(dtype), self._restored(dtype)).to(rows.dtype)
        return self._of_rows(rows * self.columns)

    def _restored(self, dtype: torch.dtype) -> Tensor:
        """Return the weights with their scales, ``[out, in]``."""
        whole = self.whole_numbers()
        found = torch.empty(whole.shape, dtype=dtype)
        for start in range(0, len(whole), _RESTORED_AT_ONCE):
            part = slice(start, start + _RESTORED_AT_ONCE)
            some = whole[part].float().mul_(self.columns)
            found[part] = some.mul_(self.scales[part].unsqueeze(1))
        return found

    def _of_rows(self, rows: Tensor) -> Tensor:
        """Return the products with rows ``[R, in]`` in float32, which are overwritten.

        FBGEMM rounds the rows it is given to 7 bits, between the least and the largest number in
        them. One more row spans -63.5 to 63.5, so that these steps are 1 and whole numbers stay.
        """
        largest = torch.linalg.vector_norm(rows, torch.inf, -1, True).clamp_min_(_TINY)
        rows.mul_(torch.full_like(largest, _REACH).div_(largest))
        coarse = rows.round()
        given = torch.cat([coarse, rows.sub_(coarse).mul_(_STEPS), self._frame[2:]])
        out: Tensor = torch.ops.quantized.linear_dynamic(given, self._packed, True)
        count = len(rows)
        return out[:count].add_(out[count:-1], alpha=1 / _STEPS).mul_(largest.div_(_REACH))

    def _of_one(self, x: Tensor) -> Tensor:
        """Return the products with one row ``[in]``, to the bit as those of several: in few calls.

        A token of an answer makes this for each layer, and most of the time would be between them.
        """
        given = self._frame.clone()
        coarse, fine = given[0], given[1]
        torch.mul(x, self.columns, out=fine)
        largest = max(float(torch.linalg.vector_norm(fine, torch.inf)), _TINY)
        torch.round(fine.mul_(_REACH / largest), out=coarse)
        fine.sub_(coarse).mul_(_STEPS)
        out: Tensor = torch.ops.quantized.linear_dynamic(given, self._packed, True)
        return out[:1].add_(out[1:2], alpha=1 / _STEPS).mul_(largest / _REACH)


class Linear4(nn.Module):
    """A linear layer whose weights are of 4 bits, in groups of 32 with a scale and a zero."""

    precision = torch.bfloat16
    weight: Tensor
    groups: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        grouped = layer.weight.detach().float().unflatten(1, (-1, GROUP))
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
        out = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.groups)
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


def _restored_in(dtype: torch.dtype) -> torch.dtype | None:
    """Return in what many rows are multiplied by restored weights; None where integers are faster.

    AMX multiplies bfloat16 so much faster that rows in float32 are rounded to it as well.
    """
    if dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported():
        return dtype
    if dtype == torch.float32 and torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return None if torch.cpu._is_vnni_supported() else dtype
