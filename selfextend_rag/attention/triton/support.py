"""Whether a call can go to the Triton kernels, and if not, why."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from selfextend_rag.attention.triton.angles import MAX_POSITIONS
from selfextend_rag.attention.triton.tiles import capability_of

MAX_DIM = 256
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (8, 0)
_INSTALLED = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether kernels run on the CPU, slowly: ``TRITON_INTERPRET=1`` in the environment."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> str:
    """Return why these tensors can't go to the Triton kernels; empty if they can.

    Shapes are assumed to fit each other.
    """
    return _why_not_here(q) or _why_not_these(q, k, v, scaling)


def _why_not_here(q: Tensor) -> str:
    if not _INSTALLED:
        return "triton is not installed (pip install 'selfextend-rag[gpu]')"
    if q.device.type != "cuda" and not interpreted():
        return f"the tensors are on {q.device.type!r}, not on a CUDA device"
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        capability = capability_of(q.device)
        if capability < _OLDEST:
            return f"the GPU has compute capability {capability}, below {_OLDEST}"
    return ""


def _why_not_these(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> str:
    if not (q.dtype == k.dtype == v.dtype and q.dtype in _DTYPES):
        return (
            f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, not all of one kind of float32,"
            " float16, bfloat16"
        )
    if q.dtype == torch.bfloat16 and q.device.type != "cuda":
        return "the interpreter multiplies no matrices of bfloat16"
    if not (q.device == k.device == v.device):
        return f"q, k and v are on {q.device}, {k.device} and {v.device}"
    if max(q.shape[3], v.shape[3]) > MAX_DIM:
        return f"heads of {q.shape[3]} and {v.shape[3]} dimensions are larger than {MAX_DIM}"
    if any(x.stride(3) != 1 and x.shape[3] > 1 for x in (q, k, v)):
        return "the head dimension is not contiguous in memory"
    if k.shape[2] > MAX_POSITIONS:
        return f"{k.shape[2]} tokens are more than {MAX_POSITIONS}"
    if not scaling > 0:
        return f"the scaling {scaling} is not positive"
    return ""
