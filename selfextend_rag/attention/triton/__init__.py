"""SelfExtend attention in Triton kernels: for CUDA devices, or anywhere under its interpreter.

Importing this package imports no triton; the first call does.
"""

from selfextend_rag.attention.triton.dispatch import triton_attention
from selfextend_rag.attention.triton.support import interpreted, why_not

__all__ = ["interpreted", "triton_attention", "why_not"]
